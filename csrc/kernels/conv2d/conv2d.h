// SPDX-License-Identifier: Apache-2.0
// Convolution of channels-last images as a matrix product over patches that are gathered while packing:
// y = residual + act(conv(x, weight) + bias), in f32 (f64 for f64), rounded once.
//
// Tap (i, j) of output pixel (v, u) reads pixel (v * stride + i - pad_top, u * stride + j - pad_left) of x;
// outside is zero. The sizes of y say where the output ends. With swapped, flipped weights this is also the
// gradient by x; paddings may be negative.
#pragma once
#include "core/cpu_features.h"
#include "core/tensor_view.h"
#include "kernels/common/activation.h"

namespace va {

struct Window {
  int64_t kernel_h, kernel_w, stride, pad_top, pad_left;
};

// The last axis of every image is contiguous; the others may have any strides. "wide" is the dtype of x or
// f32, the same for all that say so.
struct Conv2dForward {
  TensorView x;         // [B, h, w, C]            f32 | f64 | f16 | bf16
  TensorView weight;    // [N, kernel_h * kernel_w * C]  as x, contiguous; may be absent when packed is given
  TensorView packed;    // [linear_packed_numel]   as x, made by linear_pack; may be absent
  TensorView bias;      // [N]                     as x, may be absent
  TensorView residual;  // [B, v, u, N]            wide, may be absent
  TensorView y;         // [B, v, u, N]            out, wide
  Activation activation;
  Window window;
  bool tf32 = false;  // GPU: f32 operands may be rounded to tf32
};

// A 3 x 3 kernel with stride 1 by Winograd's algorithm, in f32, which takes 16 products for 4 pixels, not
// 36. With upsample, behind a nearest-neighbour upsampling to twice the size: 9 instead of 36. Rounding
// errors are up to twice those of conv2d_forward, and a NaN reaches the whole 2 x 2 tile of y.
struct Conv2dWinograd {
  TensorView x;         // [B, h, w, C]
  TensorView packed;    // [16 or 9, linear_packed_numel of N and C], made by conv2d_winograd_pack
  TensorView bias;      // [N], may be absent
  TensorView residual;  // [B, v, u, N], may be absent
  TensorView y;         // [B, v, u, N]  out
  Activation activation;
  int64_t pad_top, pad_left;  // of x, or with upsample 1 of the upsampled x
  bool upsample;
};

struct Conv2dWinogradPack {
  TensorView weight;  // [N, C, 3, 3]  f32, any strides
  TensorView packed;  // [16 or 9, linear_packed_numel of N and C]  out
  bool mirrored;      // take the taps from the last to the first
  bool upsample;
};

// The gradients of conv2d_winograd.
struct Conv2dWinogradWeight {
  TensorView dy;              // [B, v, u, N]  f32
  TensorView x;               // [B, h, w, C]
  TensorView dweight;         // [N, C, 3, 3]  out, any strides
  TensorView dbias;           // [N]           out, may be absent
  TensorView workspace;       // [conv2d_winograd_workspace]
  int64_t pad_top, pad_left;  // as in the forward pass
  bool upsample;
};

struct Conv2dBackwardWeight {
  TensorView dy;         // [B, v, u, N]
  TensorView x;          // [B, h, w, C]                  as dy
  TensorView dweight;    // [N, kernel_h * kernel_w * C]  out, as dy, contiguous
  TensorView workspace;  // [conv2d_workspace]          f32 (f64 for f64); may be absent when that is 0
  Window window;         // of the forward pass
};

// The elements of f32 (f64 for f64) that the gradient by the weight needs: 0 on the CPU.
int64_t conv2d_workspace(Device device, int64_t pixels, int64_t n, int64_t k);
// The elements that conv2d_winograd_weight needs, and the parts that it sums up `tiles` of 2 x 2 pixels in.
int64_t conv2d_winograd_workspace(const TensorView& dy, int64_t channels, bool upsample);
int64_t conv2d_winograd_parts(int64_t tiles, int64_t n, int64_t channels);

void conv2d_forward(const Conv2dForward& args, Stream stream);
void conv2d_winograd(const Conv2dWinograd& args);  // this and the next two: CPU only
void conv2d_winograd_pack(const Conv2dWinogradPack& args);
void conv2d_winograd_weight(const Conv2dWinogradWeight& args);
void conv2d_backward_weight(const Conv2dBackwardWeight& args, Stream stream);

namespace cpu {
template <Isa isa>
void conv2d_forward(const Conv2dForward& args);
template <Isa isa>
void conv2d_winograd(const Conv2dWinograd& args);
template <Isa isa>
void conv2d_winograd_pack(const Conv2dWinogradPack& args);
template <Isa isa>
void conv2d_winograd_weight(const Conv2dWinogradWeight& args);
template <Isa isa>
void conv2d_backward_weight(const Conv2dBackwardWeight& args);
}  // namespace cpu

namespace cuda {
int64_t conv2d_workspace(int64_t pixels, int64_t n, int64_t k);
void conv2d_forward(const Conv2dForward& args, Stream stream);
void conv2d_backward_weight(const Conv2dBackwardWeight& args, Stream stream);
}  // namespace cuda

}  // namespace va
