// SPDX-License-Identifier: Apache-2.0
// Softmax cross-entropy over the last axis, with class indices or class probabilities, label smoothing e and
// an index to ignore. With logp = x - lse and t the one-hot or given target,
//   loss = -sum_k ((1 - e) t_k + e / K) logp_k.
// Statistics in f32 (f64 for f64). A class index out of range is an error on the CPU; on the GPU, where the
// host would have to wait for the indices, it makes the loss and the gradient of its row NaN. Label
// smoothing: Szegedy et al. 2015, arXiv:1512.00567, section 7.
#pragma once
#include "core/cpu_features.h"
#include "core/tensor_view.h"

namespace va {

// mean divides by the number of rows that are not ignored.
enum class Reduction { none, mean, sum };

struct CrossEntropyForward {
  TensorView logits;  // [rows, K]  f32 | f64 | f16 | bf16; rows may be strided
  TensorView target;  // [rows] i64, or [rows, K] in the statistics dtype; contiguous
  TensorView loss;    // [1], or [rows] when the reduction is none; out, f32 (f64 for f64)
  TensorView
      losses;      // [rows]  workspace as loss; not used when the reduction is none, and then may be absent
  TensorView lse;  // [rows]  out, as loss: log sum exp of each row, saved for backward
  double label_smoothing;
  Reduction reduction;
  int64_t ignore_index;
};

struct CrossEntropyBackward {
  TensorView dloss;    // as loss
  TensorView logits;   // [rows, K]
  TensorView target;   // as in forward
  TensorView lse;      // [rows]
  TensorView dlogits;  // [rows, K]  out, as logits; contiguous rows; may be absent
  TensorView dtarget;  // [rows, K]  out, as target; only for probabilities, may be absent
  TensorView scale;    // [1]  workspace as loss, used on the GPU
  double label_smoothing;
  Reduction reduction;
  int64_t ignore_index;
};

void cross_entropy_forward(const CrossEntropyForward& args, Stream stream);
void cross_entropy_backward(const CrossEntropyBackward& args, Stream stream);

namespace cpu {
template <Isa isa>
void cross_entropy_forward(const CrossEntropyForward& args);
template <Isa isa>
void cross_entropy_backward(const CrossEntropyBackward& args);
}  // namespace cpu

namespace cuda {
void cross_entropy_forward(const CrossEntropyForward& args, Stream stream);
void cross_entropy_backward(const CrossEntropyBackward& args, Stream stream);
}  // namespace cuda

}  // namespace va
