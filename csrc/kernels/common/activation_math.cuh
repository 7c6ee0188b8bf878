// SPDX-License-Identifier: Apache-2.0
// The activations on a GPU, with the limits of activation_math.h: right at infinities, NaN stays NaN.
// kFast: approximate exp and division, below the rounding of 16-bit storage.
#pragma once
#include <cmath>

#include "kernels/common/activation.h"
#include "kernels/common/simt.cuh"

namespace va::gpu {

template <bool kFast, class C>
VA_DEVICE C exp_of(C x) {
  if constexpr (kFast)
    return simt::fast_exp2(x * 1.44269504088896340736f);
  else
    return std::exp(x);
}

template <bool kFast, class C>
VA_DEVICE C reciprocal(C x) {
#ifndef VA_SIMT
  if constexpr (kFast) return __fdividef(1.0f, x);
#endif
  return C(1) / x;
}

template <class C>
VA_DEVICE C at_least(C x, C low) {
  return low > x ? low : x;  // NaN stays
}
template <class C>
VA_DEVICE C at_most(C x, C high) {
  return x > high ? high : x;
}

// x Phi(x), with Phi the normal distribution function. Hendrycks & Gimpel 2016, arXiv:1606.08415.
template <bool kFast>
struct Gelu {
  // Phi(x). Fast: 1 - Phi(|x|) = p(|x| / sqrt(2))^-16 / 2 within 2e-7 (Abramowitz & Stegun 7.1.28).
  template <class C>
  static VA_DEVICE C cdf(C x) {
    if constexpr (kFast) {
      const C a = std::fabs(x) * 0.70710678f;
      C p = 4.30638e-5f;
      p = p * a + 2.765672e-4f;
      p = p * a + 1.520143e-4f;
      p = p * a + 9.2705272e-3f;
      p = p * a + 4.22820123e-2f;
      p = p * a + 7.05230784e-2f;
      p = p * a + 1.0f;
      p *= p, p *= p, p *= p, p *= p;
      const C tail = 0.5f * reciprocal<true>(p);
      return x > 0 ? 1.0f - tail : tail;
    } else {
      return C(0.5) * std::erfc(x * C(-0.70710678118654752440));
    }
  }
  template <class C>
  static VA_DEVICE C value(C x) {
    return at_least(x, C(-40)) * cdf(at_most(at_least(x, C(-40)), C(40)));
  }
  template <class C>
  static VA_DEVICE C derivative(C x) {
    x = at_most(at_least(x, C(-40)), C(40));
    return cdf(x) + x * C(0.39894228040143267794) * exp_of<kFast>(C(-0.5) * x * x);
  }
};

// The others are x sigmoid(u(x)), with derivative s + x u'(x) s (1 - s). Beyond |x| = kLimit the sigmoid is
// 0 or 1.
template <bool kFast, class U>
struct SigmoidProduct {
  template <class C>
  static VA_DEVICE C sigmoid(C u) {
    return reciprocal<kFast>(C(1) + exp_of<kFast>(-u));
  }
  template <class C>
  static VA_DEVICE C limited(C x) {
    constexpr C kLimit = sizeof(C) == 8 ? U::kLimitDouble : U::kLimitFloat;
    return at_most(at_least(x, -kLimit), kLimit);
  }
  template <class C>
  static VA_DEVICE C value(C x) {
    constexpr C kLimit = sizeof(C) == 8 ? U::kLimitDouble : U::kLimitFloat;
    return at_least(x, -kLimit) * sigmoid(U::u(limited(x)));
  }
  template <class C>
  static VA_DEVICE C derivative(C x) {
    x = limited(x);
    const C s = sigmoid(U::u(x)), rest = sigmoid(-U::u(x));
    return s + x * U::slope(x) * s * rest;
  }
};

// The exponent of exp(-u) stays below 80: __fdividef gives 0 beyond 2^126.
struct GeluTanhArgument {
  static constexpr float kLimitFloat = 9, kLimitDouble = 24;
  template <class C>
  static VA_DEVICE C u(C x) {
    return x * (x * x * C(0.044715 * 1.59576912160573071176) + C(1.59576912160573071176));
  }
  template <class C>
  static VA_DEVICE C slope(C x) {
    return x * x * C(3 * 0.044715 * 1.59576912160573071176) + C(1.59576912160573071176);
  }
};
struct QuickGeluArgument {
  static constexpr float kLimitFloat = 50, kLimitDouble = 410;
  template <class C>
  static VA_DEVICE C u(C x) {
    return x * C(1.702);
  }
  template <class C>
  static VA_DEVICE C slope(C) {
    return C(1.702);
  }
};
struct SiluArgument {
  static constexpr float kLimitFloat = 86, kLimitDouble = 700;
  template <class C>
  static VA_DEVICE C u(C x) {
    return x;
  }
  template <class C>
  static VA_DEVICE C slope(C) {
    return C(1);
  }
};

// f(Fn{}) with Fn::value and Fn::derivative. The kind is the same for all threads: one uniform branch keeps
// kernels from being compiled five times.
template <bool kFast, class F>
VA_DEVICE void with_activation(Activation kind, F&& f) {
  switch (kind) {
    case Activation::none:
      return;
    case Activation::gelu:
      return f(Gelu<kFast>{});
    case Activation::gelu_tanh:
      return f(SigmoidProduct<kFast, GeluTanhArgument>{});
    case Activation::quick_gelu:
      return f(SigmoidProduct<kFast, QuickGeluArgument>{});
    case Activation::silu:
      return f(SigmoidProduct<kFast, SiluArgument>{});
  }
}

// v = act(v)
template <bool kFast, int kV, class C>
VA_DEVICE void activate(Activation kind, C (&v)[kV]) {
  with_activation<kFast>(kind, [&](auto fn) {
#pragma unroll
    for (int i = 0; i < kV; ++i) v[i] = fn.value(v[i]);
  });
}

// v *= act'(z)
template <bool kFast, int kV, class C>
VA_DEVICE void times_derivative(Activation kind, const C (&z)[kV], C (&v)[kV]) {
  with_activation<kFast>(kind, [&](auto fn) {
#pragma unroll
    for (int i = 0; i < kV; ++i) v[i] *= fn.derivative(z[i]);
  });
}

}  // namespace va::gpu
