// SPDX-License-Identifier: Apache-2.0
// The yardstick of benchmarks: what this machine's arithmetic units do when nothing else limits them.
#pragma once
#include "core/cpu_features.h"

namespace va {

// Best GFLOP/s seen of f32 multiply-adds from registers, active ISA, all threads, measured for `seconds`.
double fma_peak(double seconds);

namespace cpu {
// Runs for about a millisecond on `threads` threads and returns the floating-point operations done.
template <Isa isa>
double run_fmas(int threads);
}  // namespace cpu

}  // namespace va
