// SPDX-License-Identifier: Apache-2.0
// The GPU side of conv2d: which kernel takes a convolution, and the kernels for those that tensor cores do
// not take: f64, channels that do not come 16 bytes at a time, the gradient by an f32 weight. Sums run over
// taps and channels in order, so that an output's bits do not depend on the batch.
#include "kernels/conv2d/conv2d.h"

#include <algorithm>
#include <string>

#include "core/dispatch.h"
#include "kernels/common/product.cuh"
#include "kernels/conv2d/conv2d.cuh"

namespace va {
namespace {

using namespace conv;
using namespace simt::product;

template <class T>
VA_KERNEL(kThreads)
forward_kernel(const VA_PARAMETER Conv p) {
  using C = compute_t<T>;
  const Shared<C> a = shared_memory<C>(0), b = shared_memory<C>(kOperandBytes<C>);
  const int m0 = block_x() * kTile, n0 = block_y() * kTile;
  // Neighbouring threads stage neighbouring channels; each has one tap and channel of kRun rows.
  const int depth = thread_index() % kDepth, row = thread_index() / kDepth;
  int k = depth;
  Tap tap(p, k);
  Patch<T> patches[kRun];
#pragma unroll
  for (int i = 0; i < kRun; ++i) patches[i].place(p, m0 + row + i * kSide);
  C sums[kRun][kRun] = {};
  for (int k0 = 0; k0 < p.k; k0 += kDepth) {
    sync_block();
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const int n = n0 + row + i * kSide;
      const T* const x = k < p.k ? patches[i].at(p, tap) : nullptr;
      a[depth * kRow + row + i * kSide] = x ? C(to_float(*x)) : C(0);
      const T* const w = static_cast<const T*>(p.weight) + static_cast<int64_t>(n) * p.k + k;
      b[depth * kRow + row + i * kSide] = k < p.k && n < p.n ? C(to_float(*w)) : C(0);
    }
    sync_block();
    multiply(a, b, sums);
    k += kDepth;
    tap.advance(p, kDepth);
  }
  const int n = n0 + first_column(), count = p.n - n < kRun ? p.n - n : kRun;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const int m = m0 + first_row() + i;
    if (m < p.pixels && count > 0) finish<T>(p, Pixel(p, m), n, count, sums[i]);
  }
}

// partial[split, n, k] = sum over the pixels of a part of dy[pixel, n] patch[pixel, k]
template <class T>
VA_KERNEL(kThreads)
backward_weight_kernel(const VA_PARAMETER Conv p) {
  using C = compute_t<T>;
  const Shared<C> a = shared_memory<C>(0), b = shared_memory<C>(kOperandBytes<C>);
  const int n0 = block_x() * kTile, k0 = block_y() * kTile, begin = block_z() * p.chunk;
  const int end = begin + p.chunk < p.pixels ? begin + p.chunk : p.pixels;
  const int column = thread_index() % kTile, depth = thread_index() / kTile;
  const Tap tap(p, k0 + column < p.k ? k0 + column : 0);
  C sums[kRun][kRun] = {};
  for (int m0 = begin; m0 < end; m0 += kDepth) {
    sync_block();
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const int at = (depth + i * kThreads / kTile) * kRow + column, m = m0 + depth + i * kThreads / kTile;
      const Pixel pixel(p, m < end ? m : begin);
      const T* const x = m < end && k0 + column < p.k ? tap_source<T>(p, pixel, tap) : nullptr;
      b[at] = x ? C(to_float(*x)) : C(0);
      const bool inside = m < end && n0 + column < p.n;
      a[at] = inside ? C(to_float(p.y.at<const T>(pixel.batch, pixel.row, pixel.col)[n0 + column])) : C(0);
    }
    sync_block();
    multiply(a, b, sums);
  }
  const int k = k0 + first_column(), count = p.k - k < kRun ? p.k - k : kRun;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const int64_t n = n0 + first_row() + i;
    if (n < p.n && count > 0)
      linear_gemm::store_run<C>(p.partial, (block_z() * p.n + n) * p.k + k, count, false, sums[i]);
  }
}

unsigned blocks(int64_t work, int64_t size) { return static_cast<unsigned>((work + size - 1) / size); }

// What both passes say of x, of the image y and of the window between them.
Conv conv_of(const TensorView& x, const TensorView& y, const Window& w) {
  const int64_t k = w.kernel_h * w.kernel_w * x.sizes[3], pixels = y.sizes[0] * y.sizes[1] * y.sizes[2];
  constexpr int64_t kMost = INT32_MAX / 4;  // leaves room for the padding and the last tile
  for (const int64_t size : {pixels, k, y.sizes[3], x.sizes[1], x.sizes[2], y.sizes[1] * w.stride,
                             y.sizes[2] * w.stride, w.pad_top + kMost / 2, w.pad_left + kMost / 2})
    if (size > kMost) fail("conv2d: the image or the kernel is too large for one call on a GPU");
  const auto i = [](int64_t v) { return static_cast<int>(v); };
  Conv p{};
  p.x = image_of(x), p.y = image_of(y);
  p.h = i(x.sizes[1]), p.w = i(x.sizes[2]), p.channels = i(x.sizes[3]);
  p.pixels = i(pixels), p.rows = i(y.sizes[1]), p.cols = i(y.sizes[2]), p.n = i(y.sizes[3]), p.k = i(k);
  p.kernel_w = i(w.kernel_w), p.stride = i(w.stride);
  p.pad_top = i(w.pad_top), p.pad_left = i(w.pad_left);
  return p;
}

bool is_16_bit(DType dtype) { return dtype == DType::f16 || dtype == DType::bf16; }
bool in_packs(const TensorView& image) {
  return image.sizes[3] * size_of(image.dtype) % 16 == 0 && aligned16(image);
}

// The pixels of one part of the gradient by the weight: about two blocks of 128 x 128 for each
// multiprocessor.
int64_t pixels_per_part(int64_t pixels, int64_t n, int64_t k) {
  const int64_t tiles = static_cast<int64_t>(blocks(n, 128)) * blocks(k, 128);
  const int64_t parts = std::clamp<int64_t>(2 * multiprocessors() / std::max<int64_t>(tiles, 1), 1, 64);
  return std::max<int64_t>((pixels + parts - 1) / parts, 512);
}

}  // namespace

int64_t cuda::conv2d_workspace(int64_t pixels, int64_t n, int64_t k) {
  return static_cast<int64_t>(blocks(pixels, pixels_per_part(pixels, n, k))) * n * k;
}

void cuda::conv2d_forward(const Conv2dForward& a, Stream stream) {
  check(a.weight.defined(), "conv2d: weights on a GPU are not packed");
  Conv p = conv_of(a.x, a.y, a.window);
  p.weight = a.weight.data, p.bias = a.bias.data, p.activation = a.activation;
  if (a.residual.defined()) p.residual = image_of(a.residual);
  p.wide = a.y.dtype != a.x.dtype;
  const int64_t size = size_of(a.x.dtype);
  p.vectors = p.n * size % 16 == 0 && aligned16(a.y) && aligned16(a.residual) && aligned16(a.bias);
  p.tf32 = a.tf32;
  if (a.x.dtype != DType::f64 && in_packs(a.x) && aligned16(a.weight) && p.k > 0) {
    if (a.x.dtype == DType::f32) return forward_mma<float>(p, stream);
    if (a.x.dtype == DType::f16) return forward_mma<Half>(p, stream);
    return forward_mma<BFloat16>(p, stream);
  }
  dispatch_float(a.x.dtype, "conv2d: x", [&](auto t) {
    using T = typename decltype(t)::type;
    launch("conv2d", forward_kernel<T>, {blocks(p.pixels, kTile), blocks(p.n, kTile)}, kThreads,
           2 * kOperandBytes<compute_t<T>>, stream, p);
  });
}

void cuda::conv2d_backward_weight(const Conv2dBackwardWeight& a, Stream stream) {
  Conv p = conv_of(a.x, a.dy, a.window);
  const int64_t chunk = pixels_per_part(p.pixels, p.n, p.k);
  linear_gemm::Gemm join{a.dy.dtype, p.n, p.k, p.pixels, {}, {}, {}};
  join.splits = static_cast<int>(blocks(p.pixels, chunk));
  join.partial = p.partial = a.workspace.data;
  p.chunk = static_cast<int>(chunk);
  if (is_16_bit(a.dy.dtype) && in_packs(a.x) && in_packs(a.dy)) {
    if (a.dy.dtype == DType::f16)
      backward_weight_mma<Half>(p, join.splits, stream);
    else
      backward_weight_mma<BFloat16>(p, join.splits, stream);
  } else {
    dispatch_float(a.dy.dtype, "conv2d: dy", [&](auto t) {
      using T = typename decltype(t)::type;
      launch("conv2d", backward_weight_kernel<T>,
             {blocks(p.n, kTile), blocks(p.k, kTile), static_cast<unsigned>(join.splits)}, kThreads,
             2 * kOperandBytes<compute_t<T>>, stream, p);
    });
  }
  join.epilogue.y = a.dweight.data, join.epilogue.y_row = p.k;
  join.epilogue.vectors = p.k * size_of(a.dy.dtype) % 16 == 0 && aligned16(a.dweight);
  linear_gemm::join_splits(join, stream);
}

}  // namespace va
