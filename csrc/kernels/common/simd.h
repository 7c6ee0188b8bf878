// SPDX-License-Identifier: Apache-2.0
// Vectors of one ISA, on the compiler's vector extensions. Included only by <op>_cpu.cpp files, which are
// compiled once per ISA with VA_ISA (its name) and VA_SIMD_BYTES (its vector size) defined. Everything
// lives in a namespace of that ISA so that no two builds share a function.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "core/cpu_features.h"
#include "core/dtype.h"

#define VA_INLINE inline __attribute__((always_inline))

namespace va {
inline constexpr Isa kIsa = Isa::VA_ISA;  // the ISA this file is being compiled for
}

namespace va::VA_ISA {

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(VA_SIMD_BYTES)));
};
// T is float, double or an integer; arithmetic operators, comparisons and `mask ? a : b` are the compiler's.
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
inline constexpr int kLanes = VA_SIMD_BYTES / static_cast<int>(sizeof(T));

template <class T>
VA_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};
}

template <class T>
VA_INLINE Vec<T> load_raw(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// load / store: a vector of compute_t<S> from storage type S (float, double, Half, BFloat16).
VA_INLINE Vec<float> load(const float* p) { return load_raw(p); }
VA_INLINE Vec<double> load(const double* p) { return load_raw(p); }
VA_INLINE void store(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof(v)); }
VA_INLINE void store(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof(v)); }

typedef uint16_t HalfWords __attribute__((vector_size(VA_SIMD_BYTES / 2)));

VA_INLINE Vec<float> load(const BFloat16* p) {
  HalfWords h;
  std::memcpy(&h, p, sizeof(h));
  const Vec<uint32_t> w = __builtin_convertvector(h, Vec<uint32_t>) << 16;
  return (Vec<float>)w;
}

// Round to nearest even; a NaN stays a NaN.
VA_INLINE void store(BFloat16* p, Vec<float> v) {
  const Vec<uint32_t> bits = (Vec<uint32_t>)v;
  const Vec<uint32_t> rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Vec<uint32_t> quiet = (bits >> 16) | 0x40u;
  const HalfWords h = __builtin_convertvector((v == v) ? rounded : quiet, HalfWords);
  std::memcpy(p, &h, sizeof(h));
}

VA_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 0x3ffu;
  float f;
  if (exponent == 0) {  // zero and subnormals
    f = static_cast<float>(fraction) * 5.9604644775390625e-8f;
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    bits |= sign;
    std::memcpy(&f, &bits, 4);
    return f;
  }
  const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u | (fraction << 13) | (fraction ? 0x400000u : 0u)
                                               : ((exponent + 112) << 23) | (fraction << 13));
  std::memcpy(&f, &bits, 4);
  return f;
}

VA_INLINE uint16_t float_to_half(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return sign | 0x7e00u;   // NaN
  if (bits >= 0x477ff000u) return sign | 0x7c00u;  // rounds to infinity
  if (bits < 0x38800000u) {                        // subnormal: let the adder round
    float a;
    std::memcpy(&a, &bits, 4);
    a += 0.5f;
    uint32_t r;
    std::memcpy(&r, &a, 4);
    return sign | static_cast<uint16_t>(r - 0x3f000000u);
  }
  bits += 0xfffu + ((bits >> 13) & 1u);
  return sign | static_cast<uint16_t>((bits - 0x38000000u) >> 13);
}

VA_INLINE Vec<float> load(const Half* p) {
#if VA_SIMD_BYTES == 64 && defined(__AVX512F__)
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif VA_SIMD_BYTES == 32 && defined(__F16C__)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__aarch64__)
  return (Vec<float>)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)));
#else
  Vec<float> v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = half_to_float(p[i].bits);
  return v;
#endif
}

VA_INLINE void store(Half* p, Vec<float> v) {
#if VA_SIMD_BYTES == 64 && defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, 0));
#elif VA_SIMD_BYTES == 32 && defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, 0));
#elif defined(__aarch64__)
  vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v)));
#else
  for (int i = 0; i < kLanes<float>; ++i) p[i].bits = float_to_half(v[i]);
#endif
}

// a * b + c, rounded once where the ISA has FMA (two roundings on x86 without it). Unlike a contracted
// expression it never depends on what the compiler makes of the code around it.
VA_INLINE Vec<float> fmadd(Vec<float> a, Vec<float> b, Vec<float> c) {
#if VA_SIMD_BYTES == 64 && defined(__AVX512F__)
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif VA_SIMD_BYTES == 32 && defined(__FMA__)
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Vec<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
VA_INLINE Vec<double> fmadd(Vec<double> a, Vec<double> b, Vec<double> c) {
#if VA_SIMD_BYTES == 64 && defined(__AVX512F__)
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif VA_SIMD_BYTES == 32 && defined(__FMA__)
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return (Vec<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

// The first n lanes only; the others read as zero and are not written.
template <class S>
VA_INLINE Vec<compute_t<S>> load_n(const S* p, int64_t n) {
  S buffer[kLanes<compute_t<S>>] = {};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(S));
  return load(buffer);
}
template <class S>
VA_INLINE void store_n(S* p, Vec<compute_t<S>> v, int64_t n) {
  S buffer[kLanes<compute_t<S>>];
  store(buffer, v);
  std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(S));
}
#if VA_SIMD_BYTES == 64 && defined(__AVX512F__)
VA_INLINE Vec<float> load_n(const float* p, int64_t n) {
  return (Vec<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
}
VA_INLINE void store_n(float* p, Vec<float> v, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), (__m512)v);
}
#endif

// One value, in the arithmetic that vectors of its storage type use.
template <class S>
VA_INLINE compute_t<S> load_scalar(const S* p) {
  return load_n(p, 1)[0];
}
VA_INLINE float load_scalar(const float* p) { return *p; }
VA_INLINE double load_scalar(const double* p) { return *p; }
template <class S>
VA_INLINE void store_scalar(S* p, compute_t<S> x) {
  store_n(p, splat(x), 1);
}

template <class V>
VA_INLINE V vmax(V a, V b) {
  return a > b ? a : b;
}
template <class V>
VA_INLINE V vmin(V a, V b) {
  return a < b ? a : b;
}
// The same, b where one is a NaN. With a constant, the compiler makes two instructions of the above.
#if VA_SIMD_BYTES == 64 && defined(__AVX512F__)
VA_INLINE Vec<float> vmax(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_max_ps((__m512)a, (__m512)b);
}
VA_INLINE Vec<float> vmin(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_min_ps((__m512)a, (__m512)b);
}
#elif VA_SIMD_BYTES == 32 && defined(__AVX__)
VA_INLINE Vec<float> vmax(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b);
}
VA_INLINE Vec<float> vmin(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm256_min_ps((__m256)a, (__m256)b);
}
#endif

// Lane sums and maxima in a fixed tree order: the upper half is folded onto the lower until one is left.
template <class V, class F, size_t... i>
VA_INLINE auto fold_halves(V v, F&& f, std::index_sequence<i...>) {
  constexpr size_t half = sizeof...(i);
  if constexpr (half == 1) {
    return f(v[0], v[1]);
  } else {
    const auto folded = f(__builtin_shufflevector(v, v, i...), __builtin_shufflevector(v, v, (i + half)...));
    return fold_halves(folded, f, std::make_index_sequence<half / 2>());
  }
}
template <class V>
VA_INLINE auto reduce_add(V v) {
  constexpr size_t half = sizeof(V) / sizeof(v[0]) / 2;
  return fold_halves(v, [](auto a, auto b) { return a + b; }, std::make_index_sequence<half>());
}
template <class V>
VA_INLINE auto reduce_max(V v) {
  constexpr size_t half = sizeof(V) / sizeof(v[0]) / 2;
  return fold_halves(v, [](auto a, auto b) { return a > b ? a : b; }, std::make_index_sequence<half>());
}

// body(i, n) for every vector of [0, count): n lanes are valid from element i on.
template <class T, class F>
VA_INLINE void for_lanes(int64_t count, F&& body) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) body(i, std::integral_constant<int64_t, kLanes<T>>{});
  if (i < count) body(i, count - i);
}

}  // namespace va::VA_ISA
