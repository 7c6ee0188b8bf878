// SPDX-License-Identifier: Apache-2.0
#include "kernels/conv2d/conv2d.h"

#include "core/dispatch.h"
#include "kernels/common/activation_math.h"
#include "kernels/common/gemm.h"
#include "kernels/conv2d/winograd_weight.h"

namespace va {
namespace VA_ISA {
namespace {

// Walks over the pixels of [B, v, u] in order.
struct Pixel {
  int64_t batch, row, col;
  int64_t rows, cols;

  Pixel(const TensorView& image, int64_t index) : rows(image.sizes[1]), cols(image.sizes[2]) {
    batch = index / (rows * cols);
    row = index / cols % rows;
    col = index % cols;
  }
  void next() {
    if (++col < cols) return;
    col = 0;
    if (++row < rows) return;
    row = 0;
    ++batch;
  }
};

template <class T>
T* at(const TensorView& image, int64_t batch, int64_t row, int64_t col) {
  return image.ptr<T>() + batch * image.strides[0] + row * image.strides[1] + col * image.strides[2];
}
template <class T>
T* at(const TensorView& image, const Pixel& p) {
  return at<T>(image, p.batch, p.row, p.col);
}

// The pixel of x that a tap of an output pixel reads; null outside.
template <class T>
const T* tap_source(const TensorView& x, const Window& w, const Pixel& p, int64_t tap_row, int64_t tap_col) {
  const int64_t row = p.row * w.stride + tap_row - w.pad_top;
  const int64_t col = p.col * w.stride + tap_col - w.pad_left;
  const bool inside = row >= 0 && col >= 0 && row < x.sizes[1] && col < x.sizes[2];
  return inside ? at<T>(x, p.batch, row, col) : nullptr;
}

// body(tap row, tap column, first channel, offset, count) for the stretches of one tap in [k0, k0 + kc).
template <class F>
void for_taps(const Window& w, int64_t channels, int64_t k0, int64_t kc, F&& body) {
  for (int64_t k = k0; k < k0 + kc;) {
    const int64_t tap = k / channels, c = k % channels;
    const int64_t count = smaller(channels - c, k0 + kc - k);
    body(tap / w.kernel_w, tap % w.kernel_w, c, k - k0, count);
    k += count;
  }
}

// y = residual + act(tile + bias)
template <class S, class W, Activation act>
void finish_tile(const Conv2dForward& a, const Tile<compute_t<S>>& t) {
  using C = compute_t<S>;
  const S* const bias = a.bias.defined() ? a.bias.ptr<S>() + t.col : nullptr;
  Pixel p(a.y, t.row);
  for (int64_t r = 0; r < t.rows; ++r, p.next()) {
    const C* const sums = t.data + r * kTileCols<C>;
    const W* const residual = a.residual.defined() ? at<W>(a.residual, p) + t.col : nullptr;
    W* const y = at<W>(a.y, p) + t.col;
    for_lanes<C>(t.cols, [&](int64_t c, auto n) {
      Vec<C> v = load_n(sums + c, n);
      if (bias) v += load_n(bias + c, n);
      v = ActivationFn<act>::value(v);
      if (residual) v += load_n(residual + c, n);
      store_n(y + c, v, n);
    });
  }
}

template <class S, class W, Activation act>
void forward(const Conv2dForward& a) {
  using C = compute_t<S>;
  const int64_t channels = a.x.sizes[3], k = a.window.kernel_h * a.window.kernel_w * channels;
  const int64_t pixels = a.y.sizes[0] * a.y.sizes[1] * a.y.sizes[2];
  // Patches as rows [pixel][k_count].
  const auto patches = [&](int64_t m0, int64_t rows, int64_t k0, int64_t kc, C* out) {
    for_taps(a.window, channels, k0, kc,
             [&](int64_t tap_row, int64_t tap_col, int64_t c, int64_t offset, int64_t count) {
               Pixel p(a.y, m0);
               for (int64_t r = 0; r < rows; ++r, p.next()) {
                 C* const to = out + r * kc + offset;
                 const S* const from = tap_source<S>(a.x, a.window, p, tap_row, tap_col);
                 if (from)
                   for_lanes<C>(count,
                                [&](int64_t i, auto n) { store_n(to + i, load_n(from + c + i, n), n); });
                 else
                   std::memset(to, 0, static_cast<size_t>(count) * sizeof(C));
               }
             });
    return Operand<C>{out, kc, 1};
  };
  Gemm<S> g{pixels, a.y.sizes[3], k, {}, {}};
  g.gather_a = patches;
  if (a.packed.defined())
    g.packed = a.packed.ptr<S>();
  else
    g.b = {a.weight.ptr<S>(), k, 1};
  gemm<S>(g, [&](const Tile<C>& t) { finish_tile<S, W, act>(a, t); });
}

// dweight[n, tap, c] = sum over output pixels of dy[pixel, n] patch[pixel, tap, c]
template <class S>
void backward_weight(const Conv2dBackwardWeight& a) {
  using C = compute_t<S>;
  const int64_t channels = a.x.sizes[3], k = a.dweight.sizes[1];
  const int64_t pixels = a.dy.sizes[0] * a.dy.sizes[1] * a.dy.sizes[2];
  // dy as [tile of n][pixel][kTileRows].
  const auto gradients = [&](int64_t n0, int64_t rows, int64_t m0, int64_t mc, C* out) {
    Pixel p(a.dy, m0);
    for (int64_t m = 0; m < mc; ++m, p.next()) {
      const S* const from = at<S>(a.dy, p) + n0;
      for (int64_t r0 = 0; r0 < rows; r0 += kTileRows) {
        C* const to = out + r0 * mc + m * kTileRows;
        const int64_t n = smaller(kTileRows, rows - r0);
        for (int64_t r = 0; r < n; ++r) to[r] = load_scalar(from + r0 + r);
      }
    }
    return Operand<C>{out, 1, kTileRows};
  };
  // Patches as a panel [pixel][kTileCols].
  const auto patches = [&](int64_t k0, int64_t cols, int64_t m0, int64_t mc, S* out) {
    constexpr int64_t kCols = kTileCols<C>;
    if (cols < kCols) std::memset(out, 0, static_cast<size_t>(mc) * kCols * sizeof(S));
    for_taps(a.window, channels, k0, cols,
             [&](int64_t tap_row, int64_t tap_col, int64_t c, int64_t offset, int64_t count) {
               Pixel p(a.dy, m0);
               const auto bytes = static_cast<size_t>(count) * sizeof(S);
               for (int64_t m = 0; m < mc; ++m, p.next()) {
                 S* const to = out + m * kCols + offset;
                 const S* const from = tap_source<S>(a.x, a.window, p, tap_row, tap_col);
                 if (from)
                   std::memcpy(to, from + c, bytes);
                 else
                   std::memset(to, 0, bytes);
               }
             });
  };
  Gemm<S> g{a.dweight.sizes[0], k, pixels, {}, {}};
  g.gather_a = gradients;
  g.gather_b = patches;
  gemm<S>(g, [&](const Tile<C>& t) {
    for (int64_t r = 0; r < t.rows; ++r) {
      const C* const sums = t.data + r * kTileCols<C>;
      S* const to = a.dweight.ptr<S>() + (t.row + r) * k + t.col;
      for_lanes<C>(t.cols, [&](int64_t c, auto n) { store_n(to + c, load_n(sums + c, n), n); });
    }
  });
}

}  // namespace
}  // namespace VA_ISA

namespace cpu {

template <>
void conv2d_forward<kIsa>(const Conv2dForward& a) {
  dispatch_float(a.x.dtype, "conv2d: x", [&](auto t) {
    using S = typename decltype(t)::type;
    dispatch_activation(a.activation, [&](auto act) {
      if (a.y.dtype == a.x.dtype)
        VA_ISA::forward<S, S, act()>(a);
      else
        VA_ISA::forward<S, compute_t<S>, act()>(a);
    });
  });
}

template <>
void conv2d_winograd<kIsa>(const Conv2dWinograd& a) {
  dispatch_activation(a.activation, [&](auto act) {
    if (a.upsample)
      VA_ISA::Winograd<VA_ISA::TwiceSize>(a).template run<act()>();
    else
      VA_ISA::Winograd<VA_ISA::SameSize>(a).template run<act()>();
  });
}

template <>
void conv2d_winograd_pack<kIsa>(const Conv2dWinogradPack& a) {
  if (a.upsample)
    VA_ISA::pack_points<VA_ISA::TwiceSize>(a);
  else
    VA_ISA::pack_points<VA_ISA::SameSize>(a);
}

template <>
void conv2d_winograd_weight<kIsa>(const Conv2dWinogradWeight& a) {
  if (a.upsample)
    VA_ISA::WinogradWeightGradient<VA_ISA::TwiceSize>(a).run();
  else
    VA_ISA::WinogradWeightGradient<VA_ISA::SameSize>(a).run();
}

template <>
void conv2d_backward_weight<kIsa>(const Conv2dBackwardWeight& a) {
  dispatch_float(a.dy.dtype, "conv2d: dy",
                 [&](auto t) { VA_ISA::backward_weight<typename decltype(t)::type>(a); });
}

}  // namespace cpu
}  // namespace va
