// SPDX-License-Identifier: Apache-2.0
// The weights of winograd.h: into its points, and their gradient. With y = output(weight(g) * input(d)) in
// each dimension, dg = weight'(sum over tiles of output'(dy) * input(d)), where ' is the transpose: as many
// products as the forward pass has.
#pragma once
#include "kernels/conv2d/winograd.h"

namespace va::VA_ISA {

// The points of each weight, in panels like those of linear_pack.
template <class Scheme>
void pack_points(const Conv2dWinogradPack& a) {
  constexpr int kPoints = Scheme::kPoints;
  constexpr int64_t kCols = kTileCols<float>;
  const int64_t outputs = a.weight.sizes[0], channels = a.weight.sizes[1], numel = a.packed.sizes[1];
  const int64_t* const strides = a.weight.strides;
  parallel_for(ceil_div(outputs, kCols) * channels, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / channels * kCols, valid = smaller(kCols, outputs - first);
      const float* const from = a.weight.ptr<float>() + first * strides[0] + i % channels * strides[1];
      float taps[9][kCols] = {};
      for (int64_t n = 0; n < valid; ++n)
        for (int64_t tap = 0; tap < 9; ++tap)
          taps[a.mirrored ? 8 - tap : tap][n] =
              from[n * strides[0] + tap / 3 * strides[2] + tap % 3 * strides[3]];
      float* const out = a.packed.ptr<float>() + i * kCols;
      for (int64_t n = 0; n < kCols; n += kLanes<float>)
        transform<3, kPoints>(
            [](auto& g, auto& p) __attribute__((always_inline)) { Scheme::weight(g, p); },
            [&](int r, int c) { return load(taps[3 * r + c] + n); },
            [&](int r, int c, Vec<float> v) { store(out + (r * kPoints + c) * numel + n, v); });
    }
  });
}

// Jobs are parts of the tiles times ranges of outputs. Parts depend on the shape alone: each has sums of its
// own, which are added up in order.
template <class Scheme>
class WinogradWeightGradient {
  static constexpr int kPoints = Scheme::kPoints, kAll = kPoints * kPoints;
  static constexpr int64_t kCols = kTileCols<float>, kLine = 16;

 public:
  explicit WinogradWeightGradient(const Conv2dWinogradWeight& args)
      : a(args),
        grid(a.dy),
        channels(a.x.sizes[3]),
        outputs(a.dy.sizes[3]),
        width(ceil_div(channels, kLine) * kLine),
        parts(conv2d_winograd_parts(grid.count, outputs, channels)) {}

  void run() const {
    const int threads = grid.count * channels * outputs * kAll < kSerialWork ? 1 : max_threads();
    const int64_t tiles = ceil_div(outputs, kTileRows), ranges = smaller(tiles, ceil_div(threads, parts));
    parallel_for(parts * ranges, threads == 1 ? parts : 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t part = i / ranges, range = i % ranges;
        run_job(part, tiles * range / ranges * kTileRows,
                smaller(outputs, tiles * (range + 1) / ranges * kTileRows));
      }
    });
    parallel_for(outputs, kSerialWork / (kAll * parts * channels + 1) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) finish(n);
    });
  }

 private:
  const Conv2dWinogradWeight& a;
  const TileGrid grid;
  const int64_t channels, outputs, width, parts;

  // A part's sums are [kAll][outputs][width], and behind those of all parts [outputs] for the bias.
  float* sums(int64_t part) const { return a.workspace.ptr<float>() + part * kAll * outputs * width; }
  float* bias_sums(int64_t part) const { return sums(parts) + part * outputs; }

  void run_job(int64_t part, int64_t n0, int64_t n1) const {
    // Strides are odd numbers of cache lines: rows spread over the sets of a cache.
    const auto stride_of = [](int64_t n) { return (ceil_div(n, kLine) | 1) * kLine; };
    const int64_t count = n1 - n0, x_stride = stride_of(channels), dy_stride = stride_of(count);
    const int64_t wanted = kTransformedFloats / (kAll * (x_stride + dy_stride));
    const int64_t length = smaller(larger(wanted, 96), 384);
    const int64_t x_point = length * x_stride + kLine, dy_point = length * dy_stride + kLine;
    const int64_t most = larger(channels, count);
    float* const inputs = static_cast<float*>(
        thread_scratch(static_cast<size_t>(kAll * (x_point + dy_point) + most) * sizeof(float)));
    float* const gradients = inputs + kAll * x_point;
    float* const zeros = gradients + kAll * dy_point;
    std::memset(zeros, 0, static_cast<size_t>(most) * sizeof(float));
    const int64_t first = grid.count * part / parts, last = grid.count * (part + 1) / parts;
    for (int64_t t0 = first; t0 < last; t0 += length) {
      const int64_t tiles = smaller(length, last - t0);
      for (int64_t t = 0; t < tiles; ++t) {
        transform_input<Scheme>(a.x, grid, t0 + t, a.pad_top, a.pad_left, zeros, inputs + t * x_stride,
                                x_point);
        transform_gradient(t0 + t, n0, count, zeros, gradients + t * dy_stride, dy_point);
      }
      for (int64_t i = 0; i < kAll; ++i) {
        float* const out = sums(part) + (i * outputs + n0) * width;
        for (int64_t c = 0; c < channels; c += kCols)
          for (int64_t n = 0; n < count; n += kTileRows)
            micro_kernel_for<float>(smaller(kTileRows, count - n), smaller(kCols, channels - c))(
                tiles, {gradients + i * dy_point + n, 1, dy_stride}, inputs + i * x_point + c, x_stride,
                out + n * width + c, width, t0 > first, inputs + i * x_point + c);
      }
      // Point [1, 1] is the sum of a tile's pixels.
      const float* const pixels = gradients + (kPoints + 1) * dy_point;
      float* const bias = bias_sums(part) + n0;
      for_lanes<float>(count, [&](int64_t n, auto m) {
        Vec<float> sum{};
        for (int64_t t = 0; t < tiles; ++t) sum += load_n(pixels + t * dy_stride + n, m);
        store_n(bias + n, t0 > first ? load_n(bias + n, m) + sum : sum, m);
      });
    }
  }

  void transform_gradient(int64_t tile, int64_t first, int64_t count, const float* zeros, float* out,
                          int64_t point) const {
    const float* from[2][2];
    for (int64_t i = 0; i < 2; ++i)
      for (int64_t j = 0; j < 2; ++j) {
        const int64_t row = grid.row(tile) * 2 + i, col = grid.col(tile) * 2 + j;
        const bool inside = row < a.dy.sizes[1] && col < a.dy.sizes[2];
        from[i][j] = inside ? pixel(a.dy, grid.image(tile), row, col) + first : zeros;
      }
    for_lanes<float>(count, [&](int64_t n, auto m) {
      transform<2, kPoints>(
          [](auto& y, auto& p) __attribute__((always_inline)) { Scheme::output_gradient(y, p); },
          [&](int i, int j) __attribute__((always_inline)) { return load_n(from[i][j] + n, m); },
          [&](int i, int j, Vec<float> v)
              __attribute__((always_inline)) { store_n(out + (i * kPoints + j) * point + n, v, m); });
    });
  }

  // One output's gradient from the sums of all parts.
  void finish(int64_t n) const {
    const int64_t* const strides = a.dweight.strides;
    for (int64_t c = 0; c < channels; c += kLanes<float>) {
      float taps[9][kLanes<float>];
      transform<kPoints, 3>(
          [](auto& p, auto& g) __attribute__((always_inline)) { Scheme::weight_gradient(p, g); },
          [&](int i, int j) __attribute__((always_inline)) {
            const int64_t place = ((i * kPoints + j) * outputs + n) * width + c;
            Vec<float> sum = load(sums(0) + place);
            for (int64_t part = 1; part < parts; ++part) sum += load(sums(part) + place);
            return sum;
          },
          [&](int i, int j, Vec<float> v) __attribute__((always_inline)) { store(taps[3 * i + j], v); });
      for (int64_t lane = 0; lane < smaller(kLanes<float>, channels - c); ++lane) {
        float* const to = a.dweight.ptr<float>() + n * strides[0] + (c + lane) * strides[1];
        for (int64_t tap = 0; tap < 9; ++tap)
          to[tap / 3 * strides[2] + tap % 3 * strides[3]] = taps[tap][lane];
      }
    }
    if (!a.dbias.defined()) return;
    float total = 0;
    for (int64_t part = 0; part < parts; ++part) total += bias_sums(part)[n];
    a.dbias.ptr<float>()[n] = total;
  }
};

}  // namespace va::VA_ISA
