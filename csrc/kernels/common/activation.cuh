// SPDX-License-Identifier: Apache-2.0
// The activations on the GPU: ActivationOn<kind>::value(x) and ::derivative(x) for float and double, as in
// activation_math.h: right at infinities (the limits: 0 at -inf), NaN stays NaN.
#pragma once
#include "kernels/common/activation.h"
#include "kernels/common/simt.cuh"

namespace va::simt {

VA_DEVICE float exp_of(float x) { return expf(x); }
VA_DEVICE double exp_of(double x) { return exp(x); }
VA_DEVICE float erfc_of(float x) { return erfcf(x); }
VA_DEVICE double erfc_of(double x) { return erfc(x); }

// x in [-limit, limit]; unlike fmin and fmax it keeps NaN.
template <class C>
VA_DEVICE C clamp_to(C x, C limit) {
  return x > limit ? limit : (x < -limit ? -limit : x);
}

template <Activation kind>
struct ActivationOn;

template <>
struct ActivationOn<Activation::none> {
  template <class C>
  static VA_DEVICE C value(C x) {
    return x;
  }
  template <class C>
  static VA_DEVICE C derivative(C) {
    return C(1);
  }
};

// x Phi(x); past the limits Phi is 0 or 1 in the type at hand.
template <>
struct ActivationOn<Activation::gelu> {
  template <class C>
  static VA_DEVICE C value(C x) {
    const C top = sizeof(C) == 8 ? C(40) : C(14.5);
    return (x < -top ? -top : x) * phi(clamp_to(x, top));
  }
  template <class C>
  static VA_DEVICE C derivative(C x) {
    x = clamp_to(x, sizeof(C) == 8 ? C(40) : C(14.5));
    return phi(x) + x * C(0.39894228040143267794) * exp_of(x * x * C(-0.5));
  }

 private:
  template <class C>
  static VA_DEVICE C phi(C x) {
    return C(0.5) * erfc_of(x * C(-0.70710678118654752440));
  }
};

// The others are x sigmoid(u(x)), with derivative s + x u'(x) s (1 - s).
template <class U>
struct SigmoidActivationOn {
  template <class C>
  static VA_DEVICE C value(C x) {
    const C top = limit<C>();
    return (x < -top ? -top : x) * sigmoid(U::u(clamp_to(x, top)));
  }
  template <class C>
  static VA_DEVICE C derivative(C x) {
    x = clamp_to(x, limit<C>());
    const C u = U::u(x), s = sigmoid(u);
    return s + x * U::slope(x) * s * sigmoid(-u);
  }

 private:
  template <class C>
  static VA_DEVICE C limit() {
    return sizeof(C) == 8 ? C(U::kLimitDouble) : C(U::kLimitFloat);
  }
  template <class C>
  static VA_DEVICE C sigmoid(C u) {
    return C(1) / (C(1) + exp_of(-u));
  }
};

// 0.5 x (1 + tanh(v)) = x sigmoid(2 v), v = sqrt(2 / pi) (x + 0.044715 x^3).
struct GeluTanhOn {
  static constexpr double kLimitFloat = 12, kLimitDouble = 24;
  static constexpr double kLinear = 1.59576912160573071176, kCubic = 0.044715 * kLinear;
  template <class C>
  static VA_DEVICE C u(C x) {
    return x * (x * x * C(kCubic) + C(kLinear));
  }
  template <class C>
  static VA_DEVICE C slope(C x) {
    return x * x * C(3 * kCubic) + C(kLinear);
  }
};
template <>
struct ActivationOn<Activation::gelu_tanh> : SigmoidActivationOn<GeluTanhOn> {};

struct QuickGeluOn {
  static constexpr double kLimitFloat = 64, kLimitDouble = 450;
  template <class C>
  static VA_DEVICE C u(C x) {
    return x * C(1.702);
  }
  template <class C>
  static VA_DEVICE C slope(C) {
    return C(1.702);
  }
};
template <>
struct ActivationOn<Activation::quick_gelu> : SigmoidActivationOn<QuickGeluOn> {};

struct SiluOn {
  static constexpr double kLimitFloat = 110, kLimitDouble = 760;
  template <class C>
  static VA_DEVICE C u(C x) {
    return x;
  }
  template <class C>
  static VA_DEVICE C slope(C) {
    return C(1);
  }
};
template <>
struct ActivationOn<Activation::silu> : SigmoidActivationOn<SiluOn> {};

}  // namespace va::simt
