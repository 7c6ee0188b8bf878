// SPDX-License-Identifier: Apache-2.0
// What the convolutions on a GPU share: the product over patches that they are, and its epilogue.
#pragma once
#include "kernels/conv2d/conv2d.h"
#include "kernels/linear/linear_gemm.cuh"

namespace va::conv {

using namespace simt;

// [B, row, col, channel] with contiguous channels; strides in elements.
struct Image {
  void* data;
  int64_t batch, row, col;
  template <class T>
  VA_DEVICE T* at(int b, int r, int c) const {
    return static_cast<T*>(data) + b * batch + r * row + c * col;
  }
};
inline Image image_of(const TensorView& v) { return {v.data, v.strides[0], v.strides[1], v.strides[2]}; }

// Sums over k = (tap, channel) of patches [pixel, k] and weight [n, k]; in the gradient by the weight over
// pixels of dy [pixel, n] and patches.
struct Conv {
  Image x;                    // [B, h, w, channels]
  Image y;                    // [B, rows, cols, n]; dy in the gradient by the weight
  Image residual;             // like y; data may be null
  const void *weight, *bias;  // [n, k], [n]; bias may be null
  int h, w, channels;
  int pixels, rows, cols, n, k;
  int kernel_w, stride, pad_top, pad_left;
  Activation activation;
  bool wide;     // y and residual are f32 beside 16-bit operands
  bool tf32;     // f32 operands may be rounded to tf32
  bool vectors;  // 16-byte accesses are right for bias, residual and y
  // Gradient by the weight: block_z sums `chunk` pixels into partial [splits, n, k], f32 (f64 for f64).
  void* partial;
  int chunk;
};

// An output pixel.
struct Pixel {
  int batch, row, col;
  VA_DEVICE Pixel(const Conv& p, int index)
      : batch(index / (p.rows * p.cols)), row(index / p.cols % p.rows), col(index % p.cols) {}
  VA_DEVICE void advance(const Conv& p, int by) {
    for (col += by; col >= p.cols; col -= p.cols)
      if (++row == p.rows) row = 0, ++batch;
  }
};

// Where in the kernel k points to.
struct Tap {
  int row, col, channel;
  VA_DEVICE Tap(const Conv& p, int k)
      : row(k / p.channels / p.kernel_w), col(k / p.channels % p.kernel_w), channel(k % p.channels) {}
  VA_DEVICE void advance(const Conv& p, int by) {
    for (channel += by; channel >= p.channels; channel -= p.channels)
      if (++col == p.kernel_w) col = 0, ++row;
  }
};

// The patch of x that an output pixel sums over.
template <class T>
struct Patch {
  const T* image;
  int top, left;  // its corner

  VA_DEVICE void place(const Conv& p, int index) {
    const bool exists = index < p.pixels;
    const Pixel pixel(p, exists ? index : 0);
    image = p.x.at<const T>(pixel.batch, 0, 0);
    top = exists ? pixel.row * p.stride - p.pad_top : -(1 << 30);  // above the image: zeros
    left = pixel.col * p.stride - p.pad_left;
  }
  // What a tap reads; null where that is a zero.
  VA_DEVICE const T* at(const Conv& p, const Tap& tap) const {
    const int row = top + tap.row, col = left + tap.col;
    const bool inside = row >= 0 && row < p.h && col >= 0 && col < p.w;
    return inside ? image + row * p.x.row + col * p.x.col + tap.channel : nullptr;
  }
};

// The same for a pixel that changes.
template <class T>
VA_DEVICE const T* tap_source(const Conv& p, const Pixel& pixel, const Tap& tap) {
  const int row = pixel.row * p.stride + tap.row - p.pad_top;
  const int col = pixel.col * p.stride + tap.col - p.pad_left;
  const bool inside = row >= 0 && row < p.h && col >= 0 && col < p.w;
  return inside ? p.x.at<const T>(pixel.batch, row, col) + tap.channel : nullptr;
}

// y = residual + act(sums + bias) for the channels [col, col + kV) of a pixel, of which `count` exist.
template <class T, int kV>
VA_DEVICE void finish(const Conv& p, const Pixel& pixel, int col, int count, compute_t<T> (&v)[kV]) {
  using namespace linear_gemm;
  using C = compute_t<T>;
  C other[kV];
  if (p.bias) {
    load_run<T>(p.bias, col, count, p.vectors, other);
#pragma unroll
    for (int i = 0; i < kV; ++i) v[i] += other[i];
  }
  gpu::activate<sizeof(T) == 2>(p.activation, v);
  const auto offset = [&](const Image& image) {
    return pixel.batch * image.batch + pixel.row * image.row + pixel.col * image.col + col;
  };
  if (p.residual.data) {
    load_run_of<T>(p.wide, p.residual.data, offset(p.residual), count, p.vectors, other);
#pragma unroll
    for (int i = 0; i < kV; ++i) v[i] += other[i];
  }
  if (p.wide)
    store_run<C>(p.y.data, offset(p.y), count, p.vectors, v);
  else
    store_run<T>(p.y.data, offset(p.y), count, p.vectors, v);
}

// On tensor cores: channels come 16 bytes at a time, aligned. For Half and BFloat16, and forward for float.
template <class T>
void forward_mma(const Conv& conv, Stream stream);
template <class T>
void backward_weight_mma(const Conv& conv, int splits, Stream stream);

}  // namespace va::conv
