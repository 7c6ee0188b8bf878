// SPDX-License-Identifier: Apache-2.0
// y = residual + scale * act(x weight^T + bias): every optional part is applied to the product while its
// tile is in registers or cache, in f32 (f64 for f64), and rounded once.
#pragma once
#include <string>

#include "core/cpu_features.h"
#include "core/tensor_view.h"
#include "kernels/common/activation.h"

namespace va {

// M rows, K input features, N output features. "wide" is the dtype of x or f32, the same for all that say so.
struct LinearForward {
  TensorView x;       // [M, K]  f32 | f64 | f16 | bf16; rows may be strided
  TensorView weight;  // [N, K]  as x, any strides; may be absent when packed is given
  TensorView packed;  // [linear_packed_numel]  as x, made by linear_pack from a weight of >= first + N rows;
                      //         may be absent
  TensorView bias;    // [N]     as x, may be absent
  TensorView residual;  // [M, N]  wide, rows may be strided; may be absent
  TensorView scale;     // [N]     as x or f32, may be absent
  TensorView y;         // [M, N]  out, wide
  TensorView z;         // [M, N]  out, as x: x weight^T + bias, for backward; may be absent
  Activation activation;
  int64_t first;               // the row of packed that output feature 0 is
  bool tf32 = false;           // GPU: f32 operands may be rounded to tf32
  bool deterministic = false;  // GPU: the kernel must not depend on M
};

// dz = dy * scale * act'(z);  dx = dz weight;  dweight = dz^T x;  dbias = sum dz;  dscale = sum dy * act(z).
// Where x = input_activation(input) was made just before, dx is taken through that as well:
// dx = (dz weight) * input_activation'(input).
struct LinearBackward {
  TensorView dy;         // [M, N]  wide, any strides
  TensorView x;          // [M, K]  rows may be strided; needed for dweight
  TensorView weight;     // [N, K]  any strides; needed for dx
  TensorView z;          // [M, N]  needed for an activation and for dscale
  TensorView scale;      // [N]     may be absent
  TensorView input;      // [M, K]  as x, rows may be strided; may be absent
  TensorView dz;         // [M, N]  out, as x; may be absent, and is then dy itself: no activation, no scale,
                         //         dy as x
  TensorView dx;         // [M, K]  out, as x; may be absent
  TensorView dweight;    // [N, K]  out, as x; may be absent
  TensorView dbias;      // [N]     out, f32 (f64 for f64); may be absent
  TensorView dscale;     // [N]     out, like dbias
  TensorView workspace;  // linear_workspace elements like dbias; may be absent when that is 0
  Activation activation, input_activation;
  bool tf32 = false, deterministic = false;  // as in forward
};

// The elements of f32 (f64 for f64) that a backward needs beside its outputs. dtype is that of x.
int64_t linear_workspace(Device device, DType dtype, int64_t rows, int64_t n, int64_t k, bool sums,
                         bool dweight);

// On the CPU the row sums of dbias and dscale are cut into this many parts, whatever the number of threads.
inline constexpr int64_t kLinearParts = 16;

void linear_forward(const LinearForward& args, Stream stream);
void linear_backward(const LinearBackward& args, Stream stream);

// The layout in which the active ISA's kernels read a weight [N, K]. CPU only.
int64_t linear_packed_numel(const TensorView& weight);
void linear_pack(const TensorView& weight, const TensorView& packed);

// A hash of everything that a packed copy depends on: ISA, address, dtype, shape, strides, and a few hundred
// elements spread over the tensor. CPU only.
uint64_t linear_fingerprint(const TensorView& weight);

// For `python -m bench.tune`: the tensor-core kernel that products take where they can (sm80_large,
// sm80_small, sm90_large, sm90_medium); empty: the choice of linear_tiles.h. Nothing happens in a build
// without CUDA.
void linear_force_tile(const std::string& name);

namespace cpu {
template <Isa isa>
void linear_forward(const LinearForward& args);
template <Isa isa>
void linear_backward(const LinearBackward& args);
template <Isa isa>
int64_t linear_packed_numel(const TensorView& weight);
template <Isa isa>
void linear_pack(const TensorView& weight, const TensorView& packed);
}  // namespace cpu

namespace cuda {
void linear_force_tile(const std::string& name);
int64_t linear_workspace(DType dtype, int64_t rows, int64_t n, int64_t k, bool sums, bool dweight);
void linear_forward(const LinearForward& args, Stream stream);
void linear_backward(const LinearBackward& args, Stream stream);
}  // namespace cuda

}  // namespace va
