// SPDX-License-Identifier: Apache-2.0
// The vector functions themselves, with the 16-byte vectors that every machine has.
#define VA_SIMD_BYTES 16
#if defined(__aarch64__)
#define VA_ISA neon
#else
#define VA_ISA portable
#endif
#include "kernels/common/math.h"

#include "tests/cpp/check.h"

namespace va::test {
namespace {

using VA_ISA::Vec;
constexpr uint64_t kLanes = VA_ISA::kLanes<float>;

double ulp(double exact) { return std::ldexp(1, std::max(std::ilogb(static_cast<float>(exact)), -126) - 23); }

// Over floats of every size and sign, infinities and NaN: within `limit` units in the last place.
template <class F, class G>
void sweep(const char* name, double limit, F&& vector, G&& exact) {
  constexpr uint64_t kStep = 9973;
  double worst = 0, worst_at = 0;
  const auto check_one = [&](float x, float got) {
    const double want = exact(static_cast<double>(x));
    const float rounded = static_cast<float>(want);
    if (std::isnan(want) || std::isinf(rounded) || want == 0) {
      if (std::isnan(want) ? !std::isnan(got) : got != rounded) worst = INFINITY, worst_at = x;
      return;
    }
    const double error = std::fabs(static_cast<double>(got) - want) / ulp(want);
    if (!(error <= worst)) worst = error, worst_at = x;
  };
  const auto check_vector = [&](const float* x) {
    float y[kLanes];
    VA_ISA::store(y, vector(VA_ISA::load(x)));
    for (uint64_t i = 0; i < kLanes; ++i) check_one(x[i], y[i]);
  };
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += kStep * kLanes) {
    float x[kLanes];
    for (uint64_t i = 0; i < kLanes; ++i) {
      const auto b = static_cast<uint32_t>(bits + i * kStep);
      std::memcpy(x + i, &b, 4);
    }
    check_vector(x);
  }
  const float special[] = {INFINITY, -INFINITY, NAN,     0,       -0.0f,    1,
                           -1,       1e-45f,    -1e-45f, 3.4e38f, -3.4e38f, 88.72284f};
  for (size_t i = 0; i < std::size(special); i += kLanes) check_vector(special + i);
  if (!(worst <= limit)) {
    report_failure(std::string(name) + ": " + std::to_string(worst) + " ulp at " + std::to_string(worst_at));
  }
}

}  // namespace

TEST(vector_functions_are_accurate) {
  sweep("exp", 1.5, [](Vec<float> x) { return VA_ISA::vexp(x); }, [](double x) { return std::exp(x); });
  sweep("exp2", 1.5, [](Vec<float> x) { return VA_ISA::vexp2(x); }, [](double x) { return std::exp2(x); });
  sweep("log", 1.5, [](Vec<float> x) { return VA_ISA::vlog(x); }, [](double x) { return std::log(x); });
  sweep("erf", 3, [](Vec<float> x) { return VA_ISA::verf(x); }, [](double x) { return std::erf(x); });
  sweep("tanh", 3, [](Vec<float> x) { return VA_ISA::vtanh(x); }, [](double x) { return std::tanh(x); });
  sweep(
      "sigmoid", 3, [](Vec<float> x) { return VA_ISA::vsigmoid(x); },
      [](double x) { return x > 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); });
  sweep("sqrt", 0.5, [](Vec<float> x) { return VA_ISA::vsqrt(x); }, [](double x) { return std::sqrt(x); });
}

}  // namespace va::test
