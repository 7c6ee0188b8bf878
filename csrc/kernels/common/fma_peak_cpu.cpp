// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/fma_peak.h"

#include "core/parallel.h"
#include "kernels/common/simd.h"

namespace va {
namespace VA_ISA {
namespace {

constexpr int kChains = 12;  // at least latency times throughput of any core, and within 16 registers
constexpr int64_t kSteps = 200'000;

// Chains that approach a fixed point: no overflow, no subnormals, nothing that a compiler can leave out.
float run_chains(float start) {
  Vec<float> sum[kChains];
  for (int i = 0; i < kChains; ++i) sum[i] = splat(start + static_cast<float>(i));
  const Vec<float> x = splat(0.999f), y = splat(0.001f);
  for (int64_t n = 0; n < kSteps; ++n)
    for (int i = 0; i < kChains; ++i) sum[i] = fmadd(sum[i], x, y);
  for (int i = 1; i < kChains; ++i) sum[0] += sum[i];
  return reduce_add(sum[0]);
}

}  // namespace
}  // namespace VA_ISA

namespace cpu {

template <>
double run_fmas<kIsa>(int threads) {
  parallel_for(threads, 1, [](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      volatile float result = VA_ISA::run_chains(static_cast<float>(i));
      static_cast<void>(result);
    }
  });
  return 2.0 * VA_ISA::kLanes<float> * VA_ISA::kChains * VA_ISA::kSteps * threads;
}

}  // namespace cpu
}  // namespace va
