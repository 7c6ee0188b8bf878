// SPDX-License-Identifier: Apache-2.0
// The CUDA implementations of attention; attention_cuda.cu chooses.
#pragma once
#include "kernels/attention/attention.h"

namespace va::cuda {

// Tensor cores: T = Half or BFloat16, head dim <= kD and a multiple of 8, 16-byte aligned rows.
template <class T, int kD>
void attention_forward_mma(const AttentionForward& args, Stream stream);
template <class T, int kD>
void attention_backward_mma(const AttentionBackward& args, Stream stream);

// The same on sm_90a, for kD = 64, 80, 96 and 128; q, k, v and dy must have no stride below 1.
template <class T, int kD>
void attention_forward_sm90(const AttentionForward& args, Stream stream);
template <class T, int kD>
void attention_backward_sm90(const AttentionBackward& args, Stream stream);

// Matrix products with the scores in the workspace: f16, bf16 and f32, of any head dim and alignment.
bool attention_by_products(const TensorView& q, const TensorView& k);  // whether they are for such arguments
void attention_forward_products(const AttentionForward& args, Stream stream);
void attention_backward_products(const AttentionBackward& args, Stream stream);

// Any dtype, head dim and alignment; one warp per row, without tensor cores.
void attention_forward_loop(const AttentionForward& args, Stream stream);
void attention_backward_loop(const AttentionBackward& args, Stream stream);

}  // namespace va::cuda
