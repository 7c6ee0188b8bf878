// SPDX-License-Identifier: Apache-2.0
// y = (s - mean) * rstd * weight + bias over the last axis, where s = x, or x + residual when one is given.
// Statistics are taken in f32 (f64 for f64 inputs). Ba, Kiros & Hinton 2016, arXiv:1607.06450.
#pragma once
#include "core/cpu_features.h"
#include "core/tensor_view.h"

namespace va {

struct LayerNormForward {
  TensorView x;         // [rows, dim]  f32 | f64 | f16 | bf16; rows may be strided
  TensorView residual;  // [rows, dim]  as x, may be absent
  TensorView weight;    // [dim]        as x, may be absent (1)
  TensorView bias;      // [dim]        as x, may be absent (0)
  TensorView y;         // [rows, dim]  out
  TensorView sum;       // [rows, dim]  out, x + residual; absent when residual is
  TensorView mean;      // [rows]       out, f32 (f64 for f64), saved for backward; may be absent
  TensorView rstd;      // [rows]       out, like mean
  double eps;
};

struct LayerNormBackward {
  TensorView dy;         // [rows, dim]
  TensorView s;          // [rows, dim]  what was normalised
  TensorView weight;     // [dim]        may be absent
  TensorView mean;       // [rows]
  TensorView rstd;       // [rows]
  TensorView dsum;       // [rows, dim]  gradient of the sum output, may be absent
  TensorView dx;         // [rows, dim]  out; the residual's gradient is the same
  TensorView dweight;    // [dim]        out, f32 (f64 for f64); may be absent
  TensorView dbias;      // [dim]        out, like dweight
  TensorView workspace;  // [layer_norm_parts, 2, dim]  as dweight; needed when dweight or dbias is given
};

// The row sums of dweight and dbias are cut into this many parts, whatever the number of threads.
int64_t layer_norm_parts(Device device, int64_t rows);

void layer_norm_forward(const LayerNormForward& args, Stream stream);
void layer_norm_backward(const LayerNormBackward& args, Stream stream);

namespace cpu {
template <Isa isa>
void layer_norm_forward(const LayerNormForward& args);
template <Isa isa>
void layer_norm_backward(const LayerNormBackward& args);
}  // namespace cpu

namespace cuda {
int64_t layer_norm_parts(int64_t rows);
void layer_norm_forward(const LayerNormForward& args, Stream stream);
void layer_norm_backward(const LayerNormBackward& args, Stream stream);
}  // namespace cuda

}  // namespace va
