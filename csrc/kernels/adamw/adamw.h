// SPDX-License-Identifier: Apache-2.0
// One AdamW step over a list of tensors, in place, and the norm of a list of gradients.
// Loshchilov & Hutter 2017, arXiv:1711.05101, algorithm 2; the order of operations is torch.optim.AdamW's:
//   g = grad grad_scale;  p = p (1 - lr decay);  m = m + (1 - b1) (g - m);  v = b2 v + (1 - b2) g^2
//   p = p - lr / (1 - b1^step) m / (sqrt(v) / sqrt(1 - b2^step) + eps)
#pragma once
#include <vector>

#include "core/cpu_features.h"
#include "core/tensor_view.h"

namespace va {

// The i-th tensors of all lists share shape and strides, without holes.
struct AdamW {
  std::vector<TensorView> params;       // f32 | f64 | f16 | bf16, updated
  std::vector<TensorView> grads;        // as its parameter
  std::vector<TensorView> exp_avgs;     // f32 (f64 for f64), updated
  std::vector<TensorView> exp_avg_sqs;  // as exp_avgs, updated
  int64_t step;                         // of this update, from 1; not read if there is
  double lr, beta1, beta2, eps, weight_decay;
  double grad_scale;       // multiplies the gradients: clipping, loss scale
  TensorView step_tensor;  // []  int64, where the parameters are: the step, for CUDA graphs; may be absent
};

struct GradNorm {
  std::vector<TensorView> grads;  // f32 | f64 | f16 | bf16, without holes
  TensorView norm;                // []  out, f64: the square root of the sum of all squares
  TensorView workspace;           // [kGradNormBlocks]  f64, used on the GPU
};

void adamw(const AdamW& args, Stream stream);
void grad_norm(const GradNorm& args, Stream stream);

// All tensors cut into chunks of kAdamWChunk elements, counted through the list. The cut does not depend on
// threads, so neither do results.
inline constexpr int64_t kAdamWChunk = 16384;
inline constexpr int64_t kGradNormParts = 64;    // partial sums of the norm on the CPU
inline constexpr int64_t kGradNormBlocks = 512;  // and on the GPU, at most

struct AdamWTensor {
  DType dtype;
  int64_t numel;
  int64_t first_chunk;
  void *param, *grad, *exp_avg, *exp_avg_sq;  // only grad for the norm
};

struct AdamWList {
  const AdamWTensor* tensors;
  int64_t count;
  int64_t chunks;
};

namespace cpu {
template <Isa isa>
void adamw(const AdamW& args, const AdamWList& list);
template <Isa isa>
void grad_norm(const GradNorm& args, const AdamWList& list);
}  // namespace cpu

namespace cuda {
void adamw(const AdamW& args, const AdamWList& list, Stream stream);
void grad_norm(const GradNorm& args, const AdamWList& list, Stream stream);
}  // namespace cuda

}  // namespace va
