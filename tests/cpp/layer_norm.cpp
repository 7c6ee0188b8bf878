// SPDX-License-Identifier: Apache-2.0
#include "kernels/layer_norm/layer_norm.h"

#include "tests/cpp/check.h"

namespace va::test {
namespace {

template <class T>
void run(int64_t rows, int64_t dim) {
  using C = compute_t<T>;
  const auto x = random<T>({rows, dim}), residual = random<T>({rows, dim}), dsum = random<T>({rows, dim});
  const auto weight = random<T>({dim}), bias = random<T>({dim}), dy = random<T>({rows, dim});
  Array<T> y({rows, dim}), sum({rows, dim}), dx({rows, dim});
  Array<C> mean({rows}), rstd({rows}), dweight({dim}), dbias({dim}),
      work({layer_norm_parts({}, rows), 2, dim});
  const double eps = 1e-5;
  layer_norm_forward(
      {x.view, residual.view, weight.view, bias.view, y.view, sum.view, mean.view, rstd.view, eps}, 0);
  layer_norm_backward({dy.view, sum.view, weight.view, mean.view, rstd.view, dsum.view, dx.view, dweight.view,
                       dbias.view, work.view},
                      0);
  std::vector<double> want_y, want_dx, want_dw(static_cast<size_t>(dim)), want_db(static_cast<size_t>(dim));
  for (int64_t r = 0; r < rows; ++r) {
    const auto s = [&](int64_t i) {
      return to_double(from_double<T>(x[r * dim + i] + residual[r * dim + i]));
    };
    double m = 0, v = 0, mean_g = 0, mean_gx = 0;
    for (int64_t i = 0; i < dim; ++i) m += s(i) / static_cast<double>(dim);
    for (int64_t i = 0; i < dim; ++i) v += (s(i) - m) * (s(i) - m) / static_cast<double>(dim);
    const double inverse = 1 / std::sqrt(v + eps);
    for (int64_t i = 0; i < dim; ++i) {
      const double hat = (s(i) - m) * inverse, d = dy[r * dim + i];
      want_y.push_back(hat * weight[i] + bias[i]);
      want_dw[static_cast<size_t>(i)] += d * hat;
      want_db[static_cast<size_t>(i)] += d;
      mean_g += d * weight[i] / static_cast<double>(dim);
      mean_gx += d * weight[i] * hat / static_cast<double>(dim);
    }
    for (int64_t i = 0; i < dim; ++i) {
      const double hat = (s(i) - m) * inverse, g = dy[r * dim + i] * weight[i];
      want_dx.push_back(inverse * (g - mean_g - hat * mean_gx) + dsum[r * dim + i]);
    }
  }
  check_close("layer_norm y", y, want_y);
  check_close("layer_norm dx", dx, want_dx);
  check_close("layer_norm dweight", dweight, want_dw, 4 * tolerance<C>());
  check_close("layer_norm dbias", dbias, want_db, 4 * tolerance<C>());
}

}  // namespace

TEST(layer_norm_matches) {
  for_floats([](auto t) {
    run<decltype(t)>(5, 37);
    run<decltype(t)>(70, 768);
  });
}

}  // namespace va::test
