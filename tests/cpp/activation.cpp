// SPDX-License-Identifier: Apache-2.0
#include "kernels/activation/activation.h"

#include "tests/cpp/check.h"

namespace va::test {
namespace {

double value(Activation kind, double x) {
  const double v = 0.79788456080286535588 * (x + 0.044715 * x * x * x);
  switch (kind) {
    case Activation::gelu:
      return 0.5 * x * std::erfc(-x * 0.70710678118654752440);
    case Activation::gelu_tanh:
      return x / (1 + std::exp(-2 * v));
    case Activation::quick_gelu:
      return x / (1 + std::exp(-1.702 * x));
    case Activation::silu:
      return x / (1 + std::exp(-x));
    default:
      return x;
  }
}

}  // namespace

TEST(activation_matches) {
  for_floats([](auto t) {
    using T = decltype(t);
    for (const auto kind : {Activation::none, Activation::gelu, Activation::gelu_tanh, Activation::quick_gelu,
                            Activation::silu}) {
      const auto x = random<T>({40'001}, 3), dy = random<T>({40'001});
      Array<T> y({40'001}), dx({40'001});
      activation_forward({x.view, y.view, kind}, 0);
      activation_backward({dy.view, x.view, dx.view, kind}, 0);
      std::vector<double> want_y, want_dx;
      for (int64_t i = 0; i < x.size(); ++i) {
        const double h = 1e-5;
        want_y.push_back(value(kind, x[i]));
        want_dx.push_back(dy[i] * (value(kind, x[i] + h) - value(kind, x[i] - h)) / (2 * h));
      }
      check_close("activation y", y, want_y);
      check_close("activation dx", dx, want_dx, std::max(tolerance<T>(), 1e-8));  // of the difference
    }
  });
}

TEST(activation_at_the_ends) {
  for (const auto kind :
       {Activation::gelu, Activation::gelu_tanh, Activation::quick_gelu, Activation::silu}) {
    Array<float> x({4}), y({4});
    x.data = {INFINITY, -INFINITY, NAN, -1e-40f};
    x.view.data = x.data.data();
    activation_forward({x.view, y.view, kind}, 0);
    CHECK(y[0] == INFINITY);
    CHECK(y[1] == 0);
    CHECK(std::isnan(y[2]));
    CHECK(y[3] <= 0 && y[3] >= -1e-40);
  }
}

}  // namespace va::test
