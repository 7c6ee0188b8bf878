// SPDX-License-Identifier: Apache-2.0
// y = act((x - mean) * rstd * weight + bias) of channels-last images: mean and variance over the pixels and
// the channels of a group. Statistics are taken in f32 (f64 for f64). Wu & He 2018, arXiv:1803.08494.
//
// Pixels are cut into parts whose number depends on the image's size alone; a part's mean and squared
// deviations come from centred values, and parts are merged in order (Chan et al. 1979): nothing cancels,
// and neither the batch nor the threads change a bit.
#pragma once
#include "core/cpu_features.h"
#include "core/tensor_view.h"
#include "kernels/common/activation.h"

namespace va {

struct GroupNormStatistics {
  TensorView x;          // [B, P, C]  f32 | f64 | f16 | bf16, contiguous
  TensorView mean;       // [B, G]     out, f32 (f64 for f64)
  TensorView variance;   // [B, G]     out, like mean; of the population
  TensorView workspace;  // [B, group_norm_parts, 2, G]  like mean
};

struct GroupNormForward {
  TensorView x;         // [B, P, C]
  TensorView mean;      // [B, G]
  TensorView variance;  // [B, G]
  TensorView weight;    // [C]        as y
  TensorView bias;      // [C]        as y
  TensorView y;         // [B, P, C]  out, as x, or 16-bit beside an f32 x
  Activation activation;
  double eps;
};

struct GroupNormBackward {
  TensorView dy;         // [B, P, C]  as weight
  TensorView x;          // [B, P, C]
  TensorView mean;       // [B, G]
  TensorView variance;   // [B, G]
  TensorView weight;     // [C]
  TensorView bias;       // [C]
  TensorView dx;         // [B, P, C]  out, as x
  TensorView dweight;    // [C]        out, f32 (f64 for f64)
  TensorView dbias;      // [C]        out, like dweight
  TensorView workspace;  // [B, group_norm_parts, 2, C]  like dweight
  Activation activation;
  double eps;
};

// The number of parts that an image's pixels are cut into.
int64_t group_norm_parts(int64_t pixels, int64_t channels);

void group_norm_statistics(const GroupNormStatistics& args, Stream stream);
void group_norm_forward(const GroupNormForward& args, Stream stream);
void group_norm_backward(const GroupNormBackward& args, Stream stream);

namespace cpu {
template <Isa isa>
void group_norm_statistics(const GroupNormStatistics& args);
template <Isa isa>
void group_norm_forward(const GroupNormForward& args);
template <Isa isa>
void group_norm_backward(const GroupNormBackward& args);
}  // namespace cpu

namespace cuda {
void group_norm_statistics(const GroupNormStatistics& args, Stream stream);
void group_norm_forward(const GroupNormForward& args, Stream stream);
void group_norm_backward(const GroupNormBackward& args, Stream stream);
}  // namespace cuda

}  // namespace va
