// SPDX-License-Identifier: Apache-2.0
#include "kernels/adamw/adamw.h"

#include "tests/cpp/check.h"

namespace va::test {

TEST(adamw_matches) {
  for_floats([](auto t) {
    using T = decltype(t);
    using C = compute_t<T>;
    const double lr = 0.01, b1 = 0.9, b2 = 0.95, eps = 1e-8, decay = 0.1, scale = 0.5;
    const int64_t step = 3;
    std::vector<Array<T>> params, grads;
    std::vector<Array<C>> m, v;
    AdamW args{{}, {}, {}, {}, step, lr, b1, b2, eps, decay, scale, {}};
    std::vector<std::vector<double>> want_p, want_m, want_v;
    double squares = 0;
    for (const int64_t n : {5, 0, 40'001, 16'384}) {
      params.push_back(random<T>({n}));
      grads.push_back(random<T>({n}));
      m.push_back(random<C>({n}));
      v.push_back(random<C>({n}));
      for (C& x : v.back().data) x *= x;
      want_p.emplace_back(), want_m.emplace_back(), want_v.emplace_back();
      for (int64_t i = 0; i < n; ++i) {
        const double g = grads.back()[i] * scale;
        squares += grads.back()[i] * grads.back()[i];
        const double new_m = m.back()[i] * b1 + (1 - b1) * g, new_v = v.back()[i] * b2 + (1 - b2) * g * g;
        want_m.back().push_back(new_m);
        want_v.back().push_back(new_v);
        want_p.back().push_back(params.back()[i] * (1 - lr * decay) -
                                lr / (1 - std::pow(b1, step)) * new_m /
                                    (std::sqrt(new_v / (1 - std::pow(b2, step))) + eps));
      }
      args.params.push_back(params.back().view);
      args.grads.push_back(grads.back().view);
      args.exp_avgs.push_back(m.back().view);
      args.exp_avg_sqs.push_back(v.back().view);
    }
    adamw(args, 0);
    for (size_t i = 0; i < params.size(); ++i) {
      check_close("adamw params", params[i], want_p[i]);
      check_close("adamw exp_avgs", m[i], want_m[i]);
      check_close("adamw exp_avg_sqs", v[i], want_v[i]);
    }
    Array<double> norm(std::vector<int64_t>{});
    grad_norm({args.grads, norm.view, TensorView{}}, 0);
    check_close("grad_norm", norm, {std::sqrt(squares)}, 1e-12);
  });
}

}  // namespace va::test
