// SPDX-License-Identifier: Apache-2.0
// Convolutions with 3 x 3 kernels and stride 1 by Winograd's minimal filtering (Lavin & Gray 2015,
// arXiv:1509.09308): a tile of x is transformed, multiplied point by point with the transformed weight (sums
// over channels: one matrix product a point) and transformed back to 2 x 2 pixels of y.
//
// A job takes a run of tiles through all three steps; what it holds in between stays in cache. A pixel's
// arithmetic is fixed by its place in its image alone. winograd_weight.h has what concerns the weight.
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
  template <class V>
  static VA_INLINE void weight(const V (&g)[3], V (&p)[4]) {
    const V even = (g[0] + g[2]) * 0.5f, odd = g[1] * 0.5f;
    p[0] = g[0];
    p[1] = even + odd;
    p[2] = even - odd;
    p[3] = g[2];
  }
  // The transposes of output and weight.
  template <class V>
  static VA_INLINE void output_gradient(const V (&y)[2], V (&m)[4]) {
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[0] - y[1];
    m[3] = -y[1];
  }
  template <class V>
  static VA_INLINE void weight_gradient(const V (&p)[4], V (&g)[3]) {
    const V even = (p[1] + p[2]) * 0.5f;
    g[0] = p[0] + even;
    g[1] = (p[1] - p[2]) * 0.5f;
    g[2] = even + p[3];
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
  template <class V>
  static VA_INLINE void weight(const V (&g)[3], V (&p)[3]) {
    p[0] = g[0];
    p[1] = g[0] + g[1] + g[2];
    p[2] = g[2];
  }
  template <class V>
  static VA_INLINE void output_gradient(const V (&y)[2], V (&m)[3]) {
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[1];
  }
  template <class V>
  static VA_INLINE void weight_gradient(const V (&p)[3], V (&g)[3]) {
    g[0] = p[0] + p[1];
    g[1] = p[1];
    g[2] = p[1] + p[2];
  }
};

inline constexpr int64_t kTilePixels = 2;               // of y, in each direction
inline constexpr int64_t kTransformedFloats = 1 << 18;  // of a job: they share the L2 cache with the weights

// to(i, j) = T from(i, j) T' for the transform T of one dimension.
template <int kFrom, int kTo, class F, class From, class To>
VA_INLINE void transform(F&& one, From&& from, To&& to) {
  Vec<float> half[kFrom][kTo];
  VA_UNROLL
  for (int i = 0; i < kFrom; ++i) {
    Vec<float> d[kFrom];
    VA_UNROLL
    for (int j = 0; j < kFrom; ++j) d[j] = from(i, j);
    one(d, half[i]);
  }
  VA_UNROLL
  for (int j = 0; j < kTo; ++j) {
    Vec<float> d[kFrom], v[kTo];
    VA_UNROLL
    for (int i = 0; i < kFrom; ++i) d[i] = half[i][j];
    one(d, v);
    VA_UNROLL
    for (int i = 0; i < kTo; ++i) to(i, j, v[i]);
  }
}

inline float* pixel(const TensorView& image, int64_t b, int64_t row, int64_t col) {
  return image.ptr<float>() + b * image.strides[0] + row * image.strides[1] + col * image.strides[2];
}

inline int64_t larger(int64_t p, int64_t q) { return p > q ? p : q; }

// How images are cut into tiles of y.
struct TileGrid {
  int64_t rows, cols, count;

  explicit TileGrid(const TensorView& y)
      : rows(ceil_div(y.sizes[1], kTilePixels)),
        cols(ceil_div(y.sizes[2], kTilePixels)),
        count(y.sizes[0] * rows * cols) {}
  int64_t image(int64_t tile) const { return tile / (rows * cols); }
  int64_t row(int64_t tile) const { return tile / cols % rows; }
  int64_t col(int64_t tile) const { return tile % cols; }
};

// The points [i, j] of x for one tile go to out + (i * kPoints + j) * point.
template <class Scheme>
void transform_input(const TensorView& x, const TileGrid& grid, int64_t tile, int64_t pad_top,
                     int64_t pad_left, const float* zeros, float* out, int64_t point) {
  constexpr int kIn = Scheme::kIn, kPoints = Scheme::kPoints;
  const int64_t image = grid.image(tile), top = grid.row(tile) * Scheme::kStep - pad_top;
  const int64_t left = grid.col(tile) * Scheme::kStep - pad_left;
  const float* from[kIn][kIn];
  for (int64_t i = 0; i < kIn; ++i)
    for (int64_t j = 0; j < kIn; ++j) {
      const int64_t row = top + i, col = left + j;
      const bool inside = row >= 0 && col >= 0 && row < x.sizes[1] && col < x.sizes[2];
      from[i][j] = inside ? pixel(x, image, row, col) : zeros;
    }
  for_lanes<float>(x.sizes[3], [&](int64_t c, auto n) {
    transform<kIn, kPoints>(
        [](auto& d, auto& v) __attribute__((always_inline)) { Scheme::input(d, v); },
        [&](int i, int j) __attribute__((always_inline)) { return load_n(from[i][j] + c, n); },
        [&](int i, int j, Vec<float> v)
            __attribute__((always_inline)) { store_n(out + (i * kPoints + j) * point + c, v, n); });
  });
}

template <class Scheme>
class Winograd {
  static constexpr int kPoints = Scheme::kPoints, kAll = kPoints * kPoints;
  static constexpr int64_t kCols = kTileCols<float>;

 public:
  explicit Winograd(const Conv2dWinograd& args) : a(args), grid(a.y), channels(a.x.sizes[3]) {}

  template <Activation act>
  void run() const {
    const int64_t panels = ceil_div(a.y.sizes[3], kCols);
    const int threads = grid.count * channels * a.y.sizes[3] * kAll < kSerialWork ? 1 : max_threads();
    const int64_t most = larger(kTransformedFloats / (kAll * larger(channels, kCols)), 4 * kTileRows);
    const int64_t runs = ceil_div(ceil_div(grid.count, most), threads) * threads;
    const int64_t length = ceil_div(ceil_div(grid.count, runs), kTileRows) * kTileRows;
    const int64_t jobs = ceil_div(grid.count, length), parts = smaller(panels, larger(threads / jobs, 1));
    parallel_for(jobs * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t job = i / parts, part = i % parts, first = job * length;
        run_job<act>(first, smaller(length, grid.count - first), panels * part / parts,
                     panels * (part + 1) / parts);
      }
    });
  }

 private:
  const Conv2dWinograd& a;
  const TileGrid grid;
  const int64_t channels;

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
    for (int64_t t = 0; t < count; ++t)
      transform_input<Scheme>(a.x, grid, first + t, a.pad_top, a.pad_left, zeros, inputs + t * channels,
                              point);

    for (int64_t p = panel0; p < panel1; ++p) {
      const int64_t valid = smaller(kCols, a.y.sizes[3] - p * kCols);
      for (int64_t i = 0; i < kAll; ++i) {
        for (int64_t k = 0; k < channels; k += kBlockK) {
          const int64_t kc = smaller(kBlockK, channels - k);
          const float* const weight = a.packed.ptr<float>() + i * packed_numel + (p * channels + k) * kCols;
          for (int64_t t = 0; t < count; t += kTileRows)
            micro_kernel_for<float>(smaller(kTileRows, count - t), valid)(
                kc, {inputs + i * point + t * channels + k, channels, 1}, weight, kCols,
                products + (t * kAll + i) * kCols, kAll * kCols, k > 0, weight);
        }
      }
      for (int64_t t = 0; t < count; ++t)
        transform_output<act>(first + t, p * kCols, valid, products + t * kAll * kCols);
    }
  }

  // y = residual + act(the tile's products transformed back + bias)
  template <Activation act>
  void transform_output(int64_t tile, int64_t first, int64_t count, const float* products) const {
    const int64_t image = grid.image(tile), row = grid.row(tile) * 2, col = grid.col(tile) * 2;
    const int64_t below = smaller(2, a.y.sizes[1] - row), right = smaller(2, a.y.sizes[2] - col);
    const float* const bias = a.bias.defined() ? a.bias.ptr<float>() + first : nullptr;
    for_lanes<float>(count, [&](int64_t c, auto n) {
      transform<kPoints, 2>([](auto& m, auto& y) __attribute__((always_inline)) { Scheme::output(m, y); },
                            [&](int i, int j) __attribute__((always_inline)) {
                              return load(products + (i * kPoints + j) * kCols + c);
                            },
                            [&](int i, int j, Vec<float> y) __attribute__((always_inline)) {
                              if (i >= below || j >= right) return;
                              if (bias) y += load_n(bias + c, n);
                              y = ActivationFn<act>::value(y);
                              if (a.residual.defined())
                                y += load_n(pixel(a.residual, image, row + i, col + j) + first + c, n);
                              store_n(pixel(a.y, image, row + i, col + j) + first + c, y, n);
                            });
    });
  }
};

}  // namespace va::VA_ISA
