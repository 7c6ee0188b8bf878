// SPDX-License-Identifier: Apache-2.0
#include "kernels/conv2d/conv2d.h"

#include "kernels/linear/linear.h"
#include "tests/cpp/check.h"

namespace va::test {
namespace {

template <class T>
void run(int64_t B, int64_t h, int64_t w, int64_t C, int64_t N, const Window& window, bool prepacked) {
  const int64_t kh = window.kernel_h, kw = window.kernel_w, K = kh * kw * C;
  const int64_t v = (h + 2 * window.pad_top - kh) / window.stride + 1;
  const int64_t u = (w + 2 * window.pad_left - kw) / window.stride + 1;
  const auto x = random<T>({B, h, w, C}), weight = random<T>({N, K}, 1 / std::sqrt(static_cast<double>(K))),
             bias = random<T>({N}), residual = random<T>({B, v, u, N}), dy = random<T>({B, v, u, N});
  Array<T> y({B, v, u, N}), dweight({N, K}), packed({linear_packed_numel(weight.view)});
  if (prepacked) linear_pack(weight.view, packed.view);
  conv2d_forward({x.view, prepacked ? TensorView{} : weight.view, prepacked ? packed.view : TensorView{},
                  bias.view, residual.view, y.view, Activation::none, window},
                 0);
  conv2d_backward_weight({dy.view, x.view, dweight.view, {}, window}, 0);
  std::vector<double> want_y, want_dw(static_cast<size_t>(N * K));
  for (int64_t b = 0; b < B; ++b)
    for (int64_t oy = 0; oy < v; ++oy)
      for (int64_t ox = 0; ox < u; ++ox)
        for (int64_t n = 0; n < N; ++n) {
          const int64_t out = ((b * v + oy) * u + ox) * N + n;
          double sum = bias[n] + residual[out];
          for (int64_t i = 0; i < kh; ++i)
            for (int64_t j = 0; j < kw; ++j) {
              const int64_t iy = oy * window.stride + i - window.pad_top;
              const int64_t ix = ox * window.stride + j - window.pad_left;
              if (iy < 0 || ix < 0 || iy >= h || ix >= w) continue;
              for (int64_t c = 0; c < C; ++c) {
                const int64_t k = n * K + (i * kw + j) * C + c, from = ((b * h + iy) * w + ix) * C + c;
                sum += x[from] * weight[k];
                want_dw[static_cast<size_t>(k)] += dy[out] * x[from];
              }
            }
          want_y.push_back(sum);
        }
  check_close("conv2d y", y, want_y);
  check_close("conv2d dweight", dweight, want_dw);
}

// Against conv2d_forward and conv2d_backward_weight on the upsampled image.
void run_winograd(int64_t h, int64_t w, int64_t C, int64_t N, bool upsample) {
  const int64_t points = upsample ? 9 : 16, scale = upsample ? 2 : 1, v = scale * h, u = scale * w;
  const auto x = random<float>({2, h, w, C}), bias = random<float>({N}), weight = random<float>({N, 9 * C}),
             dy = random<float>({2, v, u, N});
  Array<float> large({2, v, u, C}), y({2, v, u, N}), want({2, v, u, N}), matrix({N, C});
  for (int64_t i = 0; i < 2 * v * u * C; ++i) {
    const int64_t c = i % C, col = i / C % u, row = i / C / u % v, b = i / C / u / v;
    large.data[static_cast<size_t>(i)] =
        static_cast<float>(x[((b * h + row / scale) * w + col / scale) * C + c]);
  }
  Array<float> packed({points, linear_packed_numel(matrix.view)});
  const auto taps_of = [&](TensorView rows) {  // [N, 9 * C] as [N, C, 3, 3]
    const int64_t sizes[] = {N, C, 3, 3}, strides[] = {9 * C, 1, 3 * C, C};
    rows.ndim = 4;
    for (int i = 0; i < 4; ++i) rows.sizes[i] = sizes[i], rows.strides[i] = strides[i];
    return rows;
  };
  conv2d_winograd_pack({taps_of(weight.view), packed.view, false, upsample});
  conv2d_winograd({x.view, packed.view, bias.view, {}, y.view, Activation::silu, 1, 1, upsample});
  conv2d_forward({large.view, weight.view, {}, bias.view, {}, want.view, Activation::silu, {3, 3, 1, 1, 1}},
                 0);
  check_close("conv2d_winograd y", y, std::vector<double>(want.data.begin(), want.data.end()));
  Array<float> dweight({N, 9 * C}), want_dweight({N, 9 * C}), dbias({N}),
      work({conv2d_winograd_workspace(dy.view, C, upsample)});
  conv2d_winograd_weight({dy.view, x.view, taps_of(dweight.view), dbias.view, work.view, 1, 1, upsample});
  conv2d_backward_weight({dy.view, large.view, want_dweight.view, {}, {3, 3, 1, 1, 1}}, 0);
  check_close("conv2d_winograd dweight", dweight,
              std::vector<double>(want_dweight.data.begin(), want_dweight.data.end()));
  std::vector<double> sums(static_cast<size_t>(N));
  for (int64_t i = 0; i < 2 * v * u * N; ++i) sums[static_cast<size_t>(i % N)] += dy[i];
  check_close("conv2d_winograd dbias", dbias, sums);
}

}  // namespace

TEST(conv2d_winograd_matches) {
  for (const bool upsample : {false, true}) {
    run_winograd(5, 6, 3, 7, upsample);
    run_winograd(3, 4, 50, 66, upsample);
  }
}

TEST(conv2d_matches) {
  for_floats([](auto t) {
    for (const bool prepacked : {false, true}) {
      run<decltype(t)>(2, 5, 6, 3, 7, {3, 3, 1, 1, 1}, prepacked);
      run<decltype(t)>(1, 9, 8, 50, 66, {3, 3, 2, 1, 1}, prepacked);
    }
  });
}

}  // namespace va::test
