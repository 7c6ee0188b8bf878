// SPDX-License-Identifier: Apache-2.0
#include "core/parallel.h"

#include <atomic>
#include <thread>

#include "tests/cpp/check.h"

namespace va::test {

TEST(parallel_for_covers_everything_once) {
  for (const int64_t n : {0, 1, 2, 7, 1000}) {
    for (const int64_t grain : {0, 1, 3, 2000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
      parallel_for(n, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
      });
      for (const auto& count : seen) CHECK(count == 1);
    }
  }
}

TEST(parallel_for_uses_another_thread) {
  std::atomic<int> others{0};
  const auto caller = std::this_thread::get_id();
  parallel_for(2, 1, [&](int64_t, int64_t) { others += std::this_thread::get_id() != caller; });
  CHECK(others == 1);
}

TEST(parallel_for_passes_exceptions_on) {
  for (const int64_t bad : {0, 99}) {  // on the calling thread, on another
    std::string message;
    try {
      parallel_for(100, 1, [&](int64_t begin, int64_t end) {
        if (begin <= bad && bad < end) throw Error("part with " + std::to_string(bad));
      });
    } catch (const Error& e) {
      message = e.what();
    }
    CHECK(message == "part with " + std::to_string(bad));
  }
  std::atomic<int64_t> sum{0};  // and it still works
  parallel_for(100, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
  CHECK(sum == 100);
}

TEST(parallel_for_nests) {
  std::atomic<int64_t> sum{0};
  parallel_for(8, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) parallel_for(100, 1, [&](int64_t b, int64_t e) { sum += e - b; });
  });
  CHECK(sum == 800);
}

}  // namespace va::test
