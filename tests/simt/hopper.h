// SPDX-License-Identifier: Apache-2.0
// The emulator's tensor copy engine and warpgroup products: see kernels/common/hopper.cuh. Copies land at
// once, but may be read only by threads that have waited for the phase; that products are fenced and waited
// for is not checked.
#pragma once
#include "simt/emulator.h"

namespace va::simt::emulator {

struct TensorMap {
  const void* data;
  int64_t sizes[4];    // B, N, H, D
  int64_t strides[3];  // of B, N, H, in elements
  int rows, width;
};

// A barrier is named by its byte offset in shared memory.
void init_barrier(int64_t barrier);
void expect_bytes(int64_t barrier, int bytes);
void wait_for_phase(int64_t barrier, int phase);
void copy_strip(int64_t to, const TensorMap& map, int64_t barrier, int column, int row, int head, int batch);

// acc: kN / 2 values a lane.
void warpgroup_mma_any(float* acc, const uint32_t (&a)[4], int64_t at, int columns, int width,
                       bool transposed, float (*convert)(uint16_t));
template <class T>
void warpgroup_mma(float* acc, const uint32_t (&a)[4], int64_t at, int columns, int width, bool transposed) {
  warpgroup_mma_any(acc, a, at, columns, width, transposed,
                    std::is_same_v<T, Half> ? &half_to_float : &bfloat16_to_float);
}

}  // namespace va::simt::emulator
