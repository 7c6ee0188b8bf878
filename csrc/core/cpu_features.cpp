// SPDX-License-Identifier: Apache-2.0
#include "core/cpu_features.h"

#include <atomic>
#include <cstdlib>

#include "core/check.h"

namespace va {
namespace {

constexpr Isa kAll[] = {Isa::portable, Isa::neon, Isa::avx2, Isa::avx512};  // rising order

bool machine_has(Isa isa) {
#if defined(__aarch64__)
  return isa == Isa::neon;
#elif defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  switch (isa) {
    case Isa::portable:
      return true;
    case Isa::avx2:
      return avx2;
    case Isa::avx512:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512cd");
    case Isa::neon:
      return false;
  }
  return false;
#else
  return isa == Isa::portable;
#endif
}

std::string names() {
  std::string s;
  for (const auto& n : available_isas()) s += (s.empty() ? "" : ", ") + n;
  return s;
}

Isa parse(const std::string& name, const char* what) {
  for (Isa isa : kAll) {
    if (name == name_of(isa) && machine_has(isa)) return isa;
  }
  throw Error(std::string(what) + " must be one of " + names() + " on this machine, got " + name);
}

Isa choose() {
  if (const char* forced = std::getenv("VISION_ACCEL_ISA"); forced && *forced) {
    return parse(forced, "VISION_ACCEL_ISA");
  }
  Isa best = Isa::portable;
  for (Isa isa : kAll) {
    if (machine_has(isa)) best = isa;
  }
  return best;
}

std::atomic<int>& chosen() {
  static std::atomic<int> isa{static_cast<int>(choose())};
  return isa;
}

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return "portable";
    case Isa::neon:
      return "neon";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
  }
  return "?";
}

std::vector<std::string> available_isas() {
  std::vector<std::string> out;
  for (Isa isa : kAll) {
    if (machine_has(isa)) out.emplace_back(name_of(isa));
  }
  return out;
}

Isa active_isa() { return static_cast<Isa>(chosen().load(std::memory_order_relaxed)); }

void set_isa(const std::string& name) { chosen() = static_cast<int>(parse(name, "set_isa: name")); }

}  // namespace va
