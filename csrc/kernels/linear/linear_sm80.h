// SPDX-License-Identifier: Apache-2.0
// The CUTLASS 2.x kernels: tensor cores through mma.sync, for every GPU from sm_80 on.
// Each combination below is compiled in a file of its own, which CMake writes (see
// csrc/kernels/linear/cutlass.cmake).
#pragma once
#include "kernels/linear/linear_gemm.cuh"

namespace va::linear_gemm {

// f32: three tf32 products, as exact as f32 arithmetic. tf32: one.
enum class Math { f16, bf16, f32, tf32 };
// Which axis of the operands is contiguous: kk both along k (y = x w^T), km along k and n (dx = dz w),
// mm along m and n (dw = dz^T x).
enum class Major { kk, km, mm };
// large; small, for few outputs (16-bit operands); loose, small with 4-byte accesses.
enum class Tile { large, small, loose };

template <Math math, Major major, Tile tile>
void run_sm80(const Gemm& gemm, Stream stream);

}  // namespace va::linear_gemm
