// SPDX-License-Identifier: Apache-2.0
#include "kernels/group_norm/group_norm.h"

#include "tests/cpp/check.h"

namespace va::test {
namespace {

template <class T>
void run(int64_t B, int64_t P, int64_t C, int64_t G) {
  using S = compute_t<T>;
  const int64_t parts = group_norm_parts(P, C), size = C / G;
  const double eps = 1e-6;
  const auto x = random<T>({B, P, C}), weight = random<T>({C}), bias = random<T>({C}),
             dy = random<T>({B, P, C});
  Array<T> y({B, P, C}), dx({B, P, C});
  Array<S> mean({B, G}), variance({B, G}), work({B, parts, 2, G}), dweight({C}), dbias({C}),
      work_c({B, parts, 2, C});
  group_norm_statistics({x.view, mean.view, variance.view, work.view}, 0);
  group_norm_forward(
      {x.view, mean.view, variance.view, weight.view, bias.view, y.view, Activation::silu, eps}, 0);
  group_norm_backward({dy.view, x.view, mean.view, variance.view, weight.view, bias.view, dx.view,
                       dweight.view, dbias.view, work_c.view, Activation::silu, eps},
                      0);
  std::vector<double> want_y(x.data.size()), want_dx(x.data.size()), want_dw(weight.data.size()),
      want_db(weight.data.size());
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t g = 0; g < G; ++g) {
      const auto each = [&](auto&& f) {
        for (int64_t p = 0; p < P; ++p)
          for (int64_t c = g * size; c < (g + 1) * size; ++c) f((b * P + p) * C + c, c);
      };
      const auto count = static_cast<double>(P * size);
      double m = 0, v = 0, sum = 0, sum_x = 0;
      each([&](int64_t i, int64_t) { m += x[i] / count; });
      each([&](int64_t i, int64_t) { v += (x[i] - m) * (x[i] - m) / count; });
      const double rstd = 1 / std::sqrt(v + eps);
      const auto dz = [&](int64_t i, int64_t c) {
        const double z = (x[i] - m) * rstd * weight[c] + bias[c], s = 1 / (1 + std::exp(-z));
        want_y[static_cast<size_t>(i)] = z * s;
        return dy[i] * s * (1 + z * (1 - s));
      };
      each([&](int64_t i, int64_t c) {
        const double d = dz(i, c), xhat = (x[i] - m) * rstd;
        want_db[static_cast<size_t>(c)] += d;
        want_dw[static_cast<size_t>(c)] += d * xhat;
        sum += d * weight[c] / count;
        sum_x += d * weight[c] * xhat / count;
      });
      each([&](int64_t i, int64_t c) {
        want_dx[static_cast<size_t>(i)] = rstd * (dz(i, c) * weight[c] - sum - (x[i] - m) * rstd * sum_x);
      });
    }
  }
  check_close("group_norm y", y, want_y);
  check_close("group_norm dx", dx, want_dx, 4 * tolerance<T>());
  check_close("group_norm dweight", dweight, want_dw, 4 * tolerance<S>());
  check_close("group_norm dbias", dbias, want_db, 4 * tolerance<S>());
}

}  // namespace

TEST(group_norm_matches) {
  for_floats([](auto t) {
    run<decltype(t)>(2, 7, 12, 4);
    run<decltype(t)>(1, 700, 64, 32);  // several parts
  });
}

}  // namespace va::test
