// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/fma_peak.h"

#include <algorithm>
#include <chrono>

#include "core/dispatch.h"
#include "core/parallel.h"

namespace va {

double fma_peak(double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
  };
  const int threads = max_threads();
  double best = 0;
  dispatch_isa([&](auto isa) {
    const auto start = Clock::now();
    do {
      const auto t = Clock::now();
      const double flops = cpu::run_fmas<isa()>(threads);
      best = std::max(best, flops / since(t) * 1e-9);
    } while (since(start) < seconds);
  });
  return best;
}

}  // namespace va
