// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <exception>

#include "core/cpu_features.h"
#include "core/parallel.h"
#include "tests/cpp/check.h"

namespace va::test {
namespace {
int failures = 0;
}

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

void report_failure(const std::string& message) {
  std::printf("FAILED %s\n", message.c_str());
  ++failures;
}

}  // namespace va::test

// Runs the tests whose name contains the first argument, or all.
int main(int argc, char** argv) {
  va::set_own_threads(2);
  int count = 0;
  for (const auto& test : va::test::tests()) {
    if (argc > 1 && !std::strstr(test.name, argv[1])) continue;
    try {
      test.run();
    } catch (const std::exception& e) {
      va::test::report_failure(std::string(test.name) + ": " + e.what());
    }
    ++count;
  }
  std::printf("%s: %d tests, %d failures\n", va::name_of(va::active_isa()), count, va::test::failures);
  return va::test::failures || !count;
}
