// SPDX-License-Identifier: Apache-2.0
// The CUTLASS 3.x kernels for sm_90a: TMA loads and WGMMA by specialised warps, epilogue as a visitor tree.
#pragma once
#include "kernels/linear/linear_sm80.h"

namespace va::linear_gemm {

// plain     y = act(x w^T + bias)
// saved     the same, and z = x w^T + bias
// residual  y = residual + scale * act(x w^T + bias), all in 16 bits
// wide      the same with residual, scale and y in f32
// dx        dx = dz w
// dx_input  dx = (dz w) * act'(input)
// dw        dw = dz^T x, the sum over the rows shared between blocks (stream-K)
enum class Form { plain, saved, residual, wide, dx, dx_input, dw };
// large: 128 x 256, two warpgroups on one tile. medium: 128 x 128, one tile's epilogue hidden behind the
// next one's main loop (ping-pong).
enum class Tile90 { large, medium };

template <Math math, Form form, Tile90 tile>
void run_sm90(const Gemm& gemm, void* scratch, int64_t scratch_bytes, Stream stream);

template <Math math, Form form, Tile90 tile>
int64_t sm90_scratch(const Gemm& gemm);

}  // namespace va::linear_gemm
