// SPDX-License-Identifier: Apache-2.0
// Convolutions with 3 x 3 kernels and stride 1 by Winograd's minimal filtering (Lavin & Gray 2015,
// arXiv:1509.09308): a tile of x is transformed, multiplied point by point with the transformed weight (sums
// over channels: one matrix product a point) and transformed back to 2 x 2 pixels of y.
//
// A job takes a run of tiles through all three steps; what it holds in between stays in cache. A pixel's
// arithmetic is fixed by its place in its image alone.
#pragma once
#include "core/scratch.h"
#include "kernels/common/activation_math.h"
#include "kernels/common/gemm.h"
#include "kernels/conv2d/conv2d.h"

namespace va::VA_ISA {

// The transforms in one dimension: y = output(weight(g) * input(d)) for kOut pixels of y, kIn pixels d of x
// and the taps g; the window of the next tile starts kStep pixels further. Two dimensions are their product.
//
// F(2, 3): weight(g) = g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2.
struct SameSize {
  static constexpr int kIn = 4, kPoints = 4, kStep = 2;
  template <class V>
  static VA_INLINE void input(const V (&d)[4], V (&v)[4]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }
  template <class V>
  static VA_INLINE void output(const V (&m)[4], V (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
};

// The same behind a nearest-neighbour upsampling, which leaves three points: weight(g) = g0, g0 + g1 + g2,
// g2.
struct TwiceSize {
  static constexpr int kIn = 3, kPoints = 3, kStep = 1;
  template <class V>
  static VA_INLINE void input(const V (&d)[3], V (&v)[3]) {
    v[0] = d[0] - d[1];
    v[1] = d[1];
    v[2] = d[2] - d[1];
  }
  template <class V>
  static VA_INLINE void output(const V (&m)[3], V (&y)[2]) {
    y[0] = m[0] + m[1];
    y[1] = m[1] + m[2];
  }
};

inline constexpr int64_t kTilePixels = 2;               // of y, in each direction
inline constexpr int64_t kTransformedFloats = 1 << 18;  // of a job: they share the L2 cache with the weights

template <class Scheme>
class Winograd {
  static constexpr int kIn = Scheme::kIn, kPoints = Scheme::kPoints, kAll = kPoints * kPoints;
  static constexpr int64_t kCols = kTileCols<float>;

 public:
  explicit Winograd(const Conv2dWinograd& args)
      : a(args),
        channels(a.x.sizes[3]),
        rows(ceil_div(a.y.sizes[1], kTilePixels)),
        cols(ceil_div(a.y.sizes[2], kTilePixels)) {}

  template <Activation act>
  void run() const {
    const int64_t tiles = a.y.sizes[0] * rows * cols, panels = ceil_div(a.y.sizes[3], kCols);
    const int threads = tiles * channels * a.y.sizes[3] * kAll < kSerialWork ? 1 : max_threads();
    const int64_t most = larger(kTransformedFloats / (kAll * larger(channels, kCols)), 4 * kTileRows);
    const int64_t runs = ceil_div(ceil_div(tiles, most), threads) * threads;
    const int64_t length = ceil_div(ceil_div(tiles, runs), kTileRows) * kTileRows;
    const int64_t jobs = ceil_div(tiles, length), parts = smaller(panels, larger(threads / jobs, 1));
    parallel_for(jobs * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t job = i / parts, part = i % parts, first = job * length;
        run_job<act>(first, smaller(length, tiles - first), panels * part / parts,
                     panels * (part + 1) / parts);
      }
    });
  }

 private:
  const Conv2dWinograd& a;
  const int64_t channels, rows, cols;

  static int64_t larger(int64_t p, int64_t q) { return p > q ? p : q; }

  template <Activation act>
  void run_job(int64_t first, int64_t count, int64_t panel0, int64_t panel1) const {
    // Points of one tile lie a multiple of no power of two apart, or they would share the ways of a cache
    // set.
    const int64_t point = count * channels + 16, packed_numel = a.packed.sizes[1];
    float* const inputs = static_cast<float*>(
        thread_scratch(static_cast<size_t>(kAll * (point + count * kCols) + channels) * sizeof(float)));
    float* const products = inputs + kAll * point;  // [tile][point][kCols]
    float* const zeros = products + count * kAll * kCols;
    std::memset(zeros, 0, static_cast<size_t>(channels) * sizeof(float));
    for (int64_t t = 0; t < count; ++t) transform_input(first + t, zeros, inputs + t * channels, point);

    for (int64_t p = panel0; p < panel1; ++p) {
      const int64_t valid = smaller(kCols, a.y.sizes[3] - p * kCols);
      for (int64_t i = 0; i < kAll; ++i) {
        for (int64_t k = 0; k < channels; k += kBlockK) {
          const int64_t kc = smaller(kBlockK, channels - k);
          const float* const weight = a.packed.ptr<float>() + i * packed_numel + (p * channels + k) * kCols;
          for (int64_t t = 0; t < count; t += kTileRows)
            micro_kernel_for<float>(smaller(kTileRows, count - t), valid)(
                kc, {inputs + i * point + t * channels + k, channels, 1}, weight, kCols,
                products + (t * kAll + i) * kCols, kAll * kCols, k > 0);
        }
      }
      for (int64_t t = 0; t < count; ++t)
        transform_output<act>(first + t, p * kCols, valid, products + t * kAll * kCols);
    }
  }

  // The tile's points [i, j] go to out + (i * kPoints + j) * point.
  void transform_input(int64_t tile, const float* zeros, float* out, int64_t point) const {
    const int64_t image = tile / (rows * cols), row = tile / cols % rows, col = tile % cols;
    const float* from[kIn][kIn];
    for (int64_t i = 0; i < kIn; ++i)
      for (int64_t j = 0; j < kIn; ++j) {
        const int64_t y = row * Scheme::kStep + i - a.pad_top, x = col * Scheme::kStep + j - a.pad_left;
        const bool inside = y >= 0 && x >= 0 && y < a.x.sizes[1] && x < a.x.sizes[2];
        from[i][j] = inside ? pixel(a.x, image, y, x) : zeros;
      }
    for_lanes<float>(channels, [&](int64_t c, auto n) {
      Vec<float> half[kIn][kPoints];
      VA_UNROLL
      for (int i = 0; i < kIn; ++i) {
        Vec<float> d[kIn];
        VA_UNROLL
        for (int j = 0; j < kIn; ++j) d[j] = load_n(from[i][j] + c, n);
        Scheme::input(d, half[i]);
      }
      VA_UNROLL
      for (int j = 0; j < kPoints; ++j) {
        Vec<float> d[kIn], v[kPoints];
        VA_UNROLL
        for (int i = 0; i < kIn; ++i) d[i] = half[i][j];
        Scheme::input(d, v);
        VA_UNROLL
        for (int i = 0; i < kPoints; ++i) store_n(out + (i * kPoints + j) * point + c, v[i], n);
      }
    });
  }

  // y = residual + act(the tile's products transformed back + bias)
  template <Activation act>
  void transform_output(int64_t tile, int64_t first, int64_t count, const float* products) const {
    const int64_t image = tile / (rows * cols), row = tile / cols % rows * 2, col = tile % cols * 2;
    const int64_t below = smaller(2, a.y.sizes[1] - row), right = smaller(2, a.y.sizes[2] - col);
    const float* const bias = a.bias.defined() ? a.bias.ptr<float>() + first : nullptr;
    for_lanes<float>(count, [&](int64_t c, auto n) {
      Vec<float> half[kPoints][2];
      VA_UNROLL
      for (int i = 0; i < kPoints; ++i) {
        Vec<float> m[kPoints];
        VA_UNROLL
        for (int j = 0; j < kPoints; ++j) m[j] = load(products + (i * kPoints + j) * kCols + c);
        Scheme::output(m, half[i]);
      }
      VA_UNROLL
      for (int j = 0; j < 2; ++j) {
        Vec<float> m[kPoints], y[2];
        VA_UNROLL
        for (int i = 0; i < kPoints; ++i) m[i] = half[i][j];
        Scheme::output(m, y);
        VA_UNROLL
        for (int i = 0; i < 2; ++i) {
          if (i >= below || j >= right) continue;
          if (bias) y[i] += load_n(bias + c, n);
          y[i] = ActivationFn<act>::value(y[i]);
          if (a.residual.defined()) y[i] += load_n(pixel(a.residual, image, row + i, col + j) + first + c, n);
          store_n(pixel(a.y, image, row + i, col + j) + first + c, y[i], n);
        }
      }
    });
  }

  static float* pixel(const TensorView& image, int64_t b, int64_t row, int64_t col) {
    return image.ptr<float>() + b * image.strides[0] + row * image.strides[1] + col * image.strides[2];
  }
};

}  // namespace va::VA_ISA
