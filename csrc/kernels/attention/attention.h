// SPDX-License-Identifier: Apache-2.0
// y = softmax(scale q k^T + mask) v for every head, blocked over queries and keys with an online softmax so
// that the [N, M] scores never leave the cache. Statistics are f32 (f64 for f64 inputs).
// Dao et al. 2022, arXiv:2205.14135; Rabe & Staats 2021, arXiv:2112.05682.
//
// Masks: `causal` lets query i see the keys j <= i + M - N (aligned at the bottom right); key_padding hides
// whole keys. A query that sees no key gives zeros and passes no gradient.
// Another additive mask would be one more term where key_padding is added to the scores.
#pragma once
#include "core/cpu_features.h"
#include "core/tensor_view.h"

namespace va {

inline constexpr int64_t kAttentionMaxHeadDim = 512;

// The last axis of every 4-dimensional view is contiguous, the others may have any strides.
struct AttentionForward {
  TensorView q;            // [B, N, H, D]  f32 | f64 | f16 | bf16
  TensorView k;            // [B, M, H, D]  as q
  TensorView v;            // [B, M, H, D]  as q
  TensorView key_padding;  // [B, M]        bool, true hides the key; may be absent
  TensorView y;            // [B, N, H, D]  out
  TensorView lse;          // [B, H, N]     out, f32 (f64 for f64): log sum exp of the scores, +inf if no key
  bool causal;
  double scale;
  TensorView workspace = {};  // [attention_workspace] u8; may be absent when that is 0
  bool tf32 = false;          // GPU: f32 operands may be rounded to tf32
};

struct AttentionBackward {
  TensorView q;            // [B, N, H, D]
  TensorView k;            // [B, M, H, D]
  TensorView v;            // [B, M, H, D]
  TensorView key_padding;  // [B, M]        may be absent
  TensorView y;            // [B, N, H, D]
  TensorView lse;          // [B, H, N]
  TensorView delta;        // [B, H, N]     workspace like lse, used on the GPU
  TensorView dy;           // [B, N, H, D]
  TensorView dq;           // [B, N, H, D]  out
  TensorView dk;           // [B, M, H, D]  out
  TensorView dv;           // [B, M, H, D]  out
  bool causal;
  double scale;
  TensorView workspace = {};  // as in forward
  bool tf32 = false;
};

// The bytes that a call needs beside its outputs; 0 on the CPU.
int64_t attention_workspace(const TensorView& q, const TensorView& k, bool backward);

void attention_forward(const AttentionForward& args, Stream stream);
void attention_backward(const AttentionBackward& args, Stream stream);

namespace cpu {
template <Isa isa>
void attention_forward(const AttentionForward& args);
template <Isa isa>
void attention_backward(const AttentionBackward& args);
}  // namespace cpu

namespace cuda {
int64_t attention_workspace(const TensorView& q, const TensorView& k, bool backward);
void attention_forward(const AttentionForward& args, Stream stream);
void attention_backward(const AttentionBackward& args, Stream stream);
}  // namespace cuda

}  // namespace va
