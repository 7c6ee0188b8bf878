// SPDX-License-Identifier: Apache-2.0
// Losses of M images and N texts whose logits l_ij = scale <image_i, text_j> + bias are never stored whole.
// The text of image i is text first + i.
//
// Softmax (CLIP; no bias): for each image the cross-entropy of its row, its own logit, and for each text the
// logarithm of a sum over these images, so that several processes can join theirs:
//   rows_i = log sum_j exp(l_ij) - own_i,  own_i = l_i,first+i,
//   top_j = max_i l_ij,  columns_j = log sum_i exp(l_ij - top_j).
// Sigmoid (SigLIP; with bias): rows_i = sum_j log(1 + exp(-z_ij l_ij)), z_ij = 1 for the own text and -1
// elsewhere. Radford et al. 2021, arXiv:2103.00020; Zhai et al. 2023, arXiv:2303.15343.
#pragma once
#include "core/cpu_features.h"
#include "core/tensor_view.h"

namespace va {

struct ContrastiveForward {
  TensorView image;      // [M, E]  f32 | f64; contiguous rows
  TensorView text;       // [N, E]  as image
  TensorView scale;      // [1]     as image, as everything below
  TensorView bias;       // [1]     absent for softmax
  TensorView rows;       // [M]     out
  TensorView own;        // [M]     out; softmax only, as the next two; otherwise absent
  TensorView top;        // [N]     out
  TensorView columns;    // [N]     out
  TensorView workspace;  // [contrastive_loss_workspace]
  int64_t first;         // negative (sigmoid only): none of the texts belongs to an image here
};

// With g_ij = drows_i d rows_i / d l_ij + ...:  dimage = scale g text,  dtext = scale g^T image,
// dscale = sum g_ij <image_i, text_j>,  dbias = sum g_ij. No gradient flows into top: it is a constant that
// the sum of columns refers to, and cancels in top + columns.
struct ContrastiveBackward {
  TensorView drows;     // [M]
  TensorView down;      // [M]     softmax only, as the next one; otherwise absent
  TensorView dcolumns;  // [N]
  TensorView image, text, scale, bias, rows, own, top, columns;  // as in forward
  TensorView dimage;                                             // [M, E]  out, contiguous
  TensorView dtext;                                              // [N, E]  out, contiguous
  TensorView dscale;                                             // [1]     out
  TensorView dbias;                                              // [1]     out; absent for softmax
  TensorView workspace;                                          // [contrastive_loss_workspace]
  int64_t first;
};

// Elements of workspace for M images and N texts: some rows of logits, and sums of each row.
int64_t contrastive_loss_workspace(int64_t images, int64_t texts);

void contrastive_loss_forward(const ContrastiveForward& args, Stream stream);
void contrastive_loss_backward(const ContrastiveBackward& args, Stream stream);

// Logits are computed for this many images at a time: one block of the matrix product over images.
inline constexpr int64_t kContrastiveRows = 384;
// The distance between rows of logits: not a multiple of 4096 bytes, or they would share cache sets.
inline int64_t contrastive_row_stride(int64_t texts) { return (texts + 15) / 16 * 16 + 16; }

namespace cpu {
template <Isa isa>
void contrastive_loss_forward(const ContrastiveForward& args);
template <Isa isa>
void contrastive_loss_backward(const ContrastiveBackward& args);
}  // namespace cpu

namespace cuda {
void contrastive_loss_forward(const ContrastiveForward& args, Stream stream);
void contrastive_loss_backward(const ContrastiveBackward& args, Stream stream);
}  // namespace cuda

}  // namespace va
