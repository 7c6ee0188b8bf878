// SPDX-License-Identifier: Apache-2.0
// ActivationFn<kind>::value(x) and ::derivative(x) on vectors of float or double. Right at infinities (the
// limits: 0 at -inf), NaN stays NaN.
#pragma once
#include "kernels/common/activation.h"
#include "kernels/common/math.h"

namespace va::VA_ISA {

template <Activation kind>
struct ActivationFn;

template <>
struct ActivationFn<Activation::none> {
  template <class V>
  static VA_INLINE V value(V x) {
    return x;
  }
  template <class V>
  static VA_INLINE V derivative(V) {
    return splat(Element<V>(1));
  }
};

// x Phi(x), with Phi the normal distribution function. Hendrycks & Gimpel 2016, arXiv:1606.08415.
// With the tail Q(a) = 1 - Phi(a), a = |x|: gelu = max(x, 0) - a Q(a). Nothing cancels.
template <>
struct ActivationFn<Activation::gelu> {
  static VA_INLINE Vec<float> value(Vec<float> x) {
    const Vec<float> a = limit(x, 14.5f);
    const NormalTail t = normal_tail(a);
    return (x > 0.0f ? x : splat(0.0f)) - a * t.density * t.numerator / t.denominator;
  }
  static VA_INLINE Vec<double> value(Vec<double> x) {
    const Vec<double> a = limit(x, 40.0);
    return (x > 0.0 ? x : splat(0.0)) - a * tail(a);
  }
  // Phi(x) + x phi(x) with the density phi.
  static VA_INLINE Vec<float> derivative(Vec<float> x) {
    const Vec<float> a = limit(x, 14.5f);
    const NormalTail t = normal_tail(a);
    const Vec<float> d = t.density * (t.numerator / t.denominator - a * 0.398942280f);
    return x > 0.0f ? 1.0f - d : d;
  }
  static VA_INLINE Vec<double> derivative(Vec<double> x) {
    const Vec<double> a = limit(x, 40.0);
    const Vec<double> d = tail(a) - a * vexp(a * a * -0.5) * 0.39894228040143267794;
    return x > 0.0 ? 1.0 - d : d;
  }

 private:
  template <class V>
  static VA_INLINE V limit(V x, Element<V> top) {
    const V a = vabs(x), t = splat(top);
    return t < a ? t : a;
  }
  static VA_INLINE Vec<double> tail(Vec<double> a) {
    return each_lane(a, [](double v) { return 0.5 * std::erfc(v * 0.70710678118654752440); });
  }
};

// The others are x sigmoid(u(x)), with derivative s + x u'(x) s (1 - s). Beyond |x| = kLimit the sigmoid is
// 0 or 1 in the type at hand, so x is limited there (from below only where x itself is the answer).
template <class U>
struct SigmoidActivation {
  template <class V>
  static VA_INLINE V value(V x) {
    const V s = vsigmoid(U::u(clamp(x, limit<V>(-1), limit<V>(1))));
    const V low = splat(limit<V>(-1));
    return (low > x ? low : x) * s;
  }
  template <class V>
  static VA_INLINE V derivative(V x) {
    x = clamp(x, limit<V>(-1), limit<V>(1));
    const auto s = sigmoid_parts(U::u(x));
    return s.value + x * U::slope(x) * s.value * s.complement;
  }

 private:
  template <class V>
  static constexpr Element<V> limit(int sign) {
    return static_cast<Element<V>>(sign) * (sizeof(Element<V>) == 8 ? U::kLimitDouble : U::kLimitFloat);
  }
};

// tanh form of gelu: 0.5 x (1 + tanh(v)) = x sigmoid(2 v), v = sqrt(2 / pi) (x + 0.044715 x^3).
struct GeluTanhArgument {
  static constexpr float kLimitFloat = 12, kLimitDouble = 24;
  template <class V>
  static VA_INLINE V u(V x) {
    return x * (x * x * kCubic<V> + kLinear<V>);
  }
  template <class V>
  static VA_INLINE V slope(V x) {
    return x * x * (3 * kCubic<V>)+kLinear<V>;
  }
  template <class V>
  static constexpr Element<V> kLinear = static_cast<Element<V>>(1.59576912160573071176);
  template <class V>
  static constexpr Element<V> kCubic = static_cast<Element<V>>(0.044715 * 1.59576912160573071176);
};
template <>
struct ActivationFn<Activation::gelu_tanh> : SigmoidActivation<GeluTanhArgument> {};

// x sigmoid(1.702 x), CLIP's activation.
struct QuickGeluArgument {
  static constexpr float kLimitFloat = 64, kLimitDouble = 450;
  template <class V>
  static VA_INLINE V u(V x) {
    return x * static_cast<Element<V>>(1.702);
  }
  template <class V>
  static VA_INLINE V slope(V) {
    return splat(static_cast<Element<V>>(1.702));
  }
};
template <>
struct ActivationFn<Activation::quick_gelu> : SigmoidActivation<QuickGeluArgument> {};

// x sigmoid(x), also called swish.
struct SiluArgument {
  static constexpr float kLimitFloat = 110, kLimitDouble = 760;
  template <class V>
  static VA_INLINE V u(V x) {
    return x;
  }
  template <class V>
  static VA_INLINE V slope(V) {
    return splat(Element<V>(1));
  }
};
template <>
struct ActivationFn<Activation::silu> : SigmoidActivation<SiluArgument> {};

}  // namespace va::VA_ISA
