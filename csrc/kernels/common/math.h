// SPDX-License-Identifier: Apache-2.0
// exp, exp2, log, erf, tanh and sigmoid on vectors. Float versions are range reductions and minimax fits of
// our own (scripts/fit_math.py prints the coefficients); errors stay near 1 ulp for exp, log and sigmoid and
// 2 ulp for the others, over every input: infinities, NaN and subnormals included. Double versions call the
// C library lane by lane: doubles are for checking gradients, not for speed.
#pragma once
#include <cmath>

#include "kernels/common/simd.h"

namespace va::VA_ISA {

template <class V>
using Element = std::decay_t<decltype(V{}[0])>;

VA_INLINE Vec<float> vabs(Vec<float> x) { return (Vec<float>)((Vec<uint32_t>)x & 0x7fffffffu); }
VA_INLINE Vec<double> vabs(Vec<double> x) { return (Vec<double>)((Vec<uint64_t>)x & 0x7fffffffffffffffu); }
// |x| with the sign of s.
VA_INLINE Vec<float> vcopysign(Vec<float> x, Vec<float> s) {
  return (Vec<float>)(((Vec<uint32_t>)x & 0x7fffffffu) | ((Vec<uint32_t>)s & 0x80000000u));
}

// x limited to [low, high]; a NaN stays a NaN.
template <class V>
VA_INLINE V clamp(V x, Element<V> low, Element<V> high) {
  return vmin(splat(high), vmax(splat(low), x));
}

// c0 + c1 x + c2 x^2 + ...
template <class V>
VA_INLINE V polynomial(V, Element<V> c) {
  return splat(c);
}
template <class V, class... C>
VA_INLINE V polynomial(V x, Element<V> c0, Element<V> c1, C... rest) {
  return polynomial(x, c1, rest...) * x + c0;
}

VA_INLINE Vec<float> vsqrt(Vec<float> x) {
#if VA_SIMD_BYTES == 64 && defined(__AVX512F__)
  return (Vec<float>)_mm512_sqrt_ps((__m512)x);
#elif VA_SIMD_BYTES == 32 && defined(__AVX__)
  return (Vec<float>)_mm256_sqrt_ps((__m256)x);
#elif defined(__aarch64__)
  return (Vec<float>)vsqrtq_f32((float32x4_t)x);
#else
  for (int i = 0; i < kLanes<float>; ++i) x[i] = std::sqrt(x[i]);
  return x;
#endif
}

// The nearest integer to x, ties to even; |x| < 2^22.
VA_INLINE Vec<float> round_to_integer(Vec<float> x) {
#if VA_SIMD_BYTES == 64 && defined(__AVX512F__)
  return (Vec<float>)_mm512_roundscale_ps((__m512)x, 0);
#else
  return (x + 12582912.0f) - 12582912.0f;
#endif
}

// p 2^n for an integer n, |n| <= 250; correct where the result overflows or is subnormal.
VA_INLINE Vec<float> scale_by_power(Vec<float> p, Vec<float> n) {
#if VA_SIMD_BYTES == 64 && defined(__AVX512F__)
  return (Vec<float>)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const Vec<int32_t> k = (Vec<int32_t>)(n + 12582912.0f) - 0x4b400000;
  const Vec<int32_t> half = k >> 1;
  return p * (Vec<float>)((half + 127) << 23) * (Vec<float>)((k - half + 127) << 23);
#endif
}

// exp(x) - 1 = scale (1 + p) - 1, reduced to |r| <= ln(2) / 2 with ln(2) in two parts.
struct ExpParts {
  Vec<float> n;  // scale = 2^n
  Vec<float> p;  // exp(r) - 1
};
VA_INLINE ExpParts exp_parts(Vec<float> x) {
  const Vec<float> n = round_to_integer(x * 1.44269504f);
  const Vec<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const Vec<float> q =
      polynomial(r, 0.499999934f, 0.166665206f, 0.0416683879f, 0.00836871521f, 0.0013814602f);
  return {n, q * r * r + r};
}

VA_INLINE Vec<float> vexp(Vec<float> x) {
  const ExpParts e = exp_parts(clamp(x, -104.0f, 89.0f));
  return scale_by_power(e.p + 1.0f, e.n);
}

// 2^x, at the relative error of x's own rounding.
VA_INLINE Vec<float> vexp2(Vec<float> x) {
  x = clamp(x, -151.0f, 129.0f);
  const Vec<float> n = round_to_integer(x);
  const Vec<float> r = x - n;
  return scale_by_power(polynomial(r, 1.0f, 0.693147203f, 0.240226479f, 0.0555033241f, 0.00961843761f,
                                   0.00133989002f, 0.000153533411f),
                        n);
}

// x = 2^k m with m in [sqrt(1/2), sqrt(2)); log(1 + f) = f - f^2 / 2 + f^3 q(f).
VA_INLINE Vec<float> vlog(Vec<float> x) {
  const auto tiny = x < 1.17549435e-38f;
  const Vec<float> y = tiny ? x * 8388608.0f : x;
  const Vec<int32_t> bits = (Vec<int32_t>)y - 0x3f3504f3;
  Vec<float> k = __builtin_convertvector(bits >> 23, Vec<float>);
  k = tiny ? k - 23.0f : k;
  const Vec<float> f = (Vec<float>)((bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
  const Vec<float> q = polynomial(f, 0.333333317f, -0.25000821f, 0.200012269f, -0.166233573f, 0.14201758f,
                                  -0.131601824f, 0.12761577f, -0.0763449653f);
  const Vec<float> f2 = f * f;
  const Vec<float> small = f * f2 * q + k * -2.12194440e-4f - 0.5f * f2;
  Vec<float> result = k * 0.693359375f + (f + small);
  result = x == 0.0f ? splat(-INFINITY) : result;
  result = x == INFINITY ? x : result;
  return x >= 0.0f ? result : splat(NAN);
}

// The upper tail of the normal distribution at a in [0, 14.5]: Q(a) = density(a) * ratio(a), where
// density = exp(-a^2 / 2) and ratio (Mills' ratio over sqrt(2 pi)) is fitted by a quotient of polynomials
// with positive coefficients, so that nothing cancels and tails keep their relative accuracy.
struct NormalTail {
  Vec<float> density, numerator, denominator;
};
VA_INLINE NormalTail normal_tail(Vec<float> a) {
  return {vexp2(a * -0.72134752f * a),
          polynomial(a, 0.5f, 0.438294908f, 0.183235114f, 0.0406332206f, 0.00411630893f),
          polynomial(a, 1.0f, 1.6744748f, 1.20250302f, 0.469470568f, 0.101858827f, 0.0103179366f)};
}

VA_INLINE Vec<float> verf(Vec<float> x) {
  const Vec<float> z = x * x;
  const Vec<float> small = x * polynomial(z, 1.12837917f, -0.37612635f, 0.11283715f, -0.0268605088f,
                                          0.00520385988f, -0.000817564638f, 8.51313086e-05f);
  const Vec<float> a = clamp(vabs(x) * 1.41421356f, 0.0f, 14.5f);
  const NormalTail t = normal_tail(a);
  const Vec<float> large = 1.0f - 2.0f * (t.density * t.numerator / t.denominator);
  return vabs(x) < 0.9f ? small : vcopysign(large, x);
}

// tanh(a) = m / (m + 2) with m = exp(2 a) - 1.
VA_INLINE Vec<float> vtanh(Vec<float> x) {
  const ExpParts e = exp_parts(2.0f * clamp(vabs(x), 0.0f, 10.0f));
  const Vec<float> scale = scale_by_power(splat(1.0f), e.n);
  const Vec<float> m = scale * e.p + (scale - 1.0f);
  return vcopysign(m / (m + 2.0f), x);
}

// Doubles.
template <class F>
VA_INLINE Vec<double> each_lane(Vec<double> x, F&& f) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = f(x[i]);
  return x;
}
VA_INLINE Vec<double> vsqrt(Vec<double> x) {
  return each_lane(x, [](double v) { return std::sqrt(v); });
}
VA_INLINE Vec<double> vexp(Vec<double> x) {
  return each_lane(x, [](double v) { return std::exp(v); });
}
VA_INLINE Vec<double> vlog(Vec<double> x) {
  return each_lane(x, [](double v) { return std::log(v); });
}
VA_INLINE Vec<double> verf(Vec<double> x) {
  return each_lane(x, [](double v) { return std::erf(v); });
}
VA_INLINE Vec<double> vtanh(Vec<double> x) {
  return each_lane(x, [](double v) { return std::tanh(v); });
}

// sigmoid(x) and 1 - sigmoid(x), both to full relative accuracy.
template <class V>
struct Sigmoid {
  V value, complement;
};
template <class V>
VA_INLINE Sigmoid<V> sigmoid_parts(V x) {
  const V e = vexp(-vabs(x));
  const V big = Element<V>(1) / (e + Element<V>(1));
  const V small = e * big;
  return {x > Element<V>(0) ? big : small, x > Element<V>(0) ? small : big};
}
template <class V>
VA_INLINE V vsigmoid(V x) {
  return sigmoid_parts(x).value;
}

}  // namespace va::VA_ISA
