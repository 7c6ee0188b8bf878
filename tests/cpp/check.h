// SPDX-License-Identifier: Apache-2.0
// The tests of the core without Python: every op against plain loops in double. Built natively by
// test_cpp.py, and for aarch64 by scripts/check_neon.sh. A file per op; TEST registers a function.
#pragma once
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "core/tensor_view.h"

namespace va::test {

struct Test {
  const char* name;
  void (*run)();
};
std::vector<Test>& tests();
void report_failure(const std::string& message);

#define TEST(name)                                                                         \
  static void name();                                                                      \
  static const bool name##_is_listed = (va::test::tests().push_back({#name, name}), true); \
  static void name()

#define CHECK(condition) \
  if (!(condition))      \
  va::test::report_failure(std::string(__FILE__ ":") + std::to_string(__LINE__) + ": " #condition)

// Storage types and double, by way of the definition of the formats.
inline double to_double(double x) { return x; }
inline double to_double(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline double to_double(Half x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const double size = exponent == 31 ? (fraction ? NAN : INFINITY)
                      : exponent     ? std::ldexp(1024 + fraction, exponent - 25)
                                     : std::ldexp(fraction, -24);
  return x.bits & 0x8000 ? -size : size;
}

template <class T>
T from_double(double x) {
  return static_cast<T>(x);
}
template <>
inline BFloat16 from_double<BFloat16>(double x) {
  const float f = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline Half from_double<Half>(double x) {
  if (x == 0) return {0};
  const int exponent = std::max(std::ilogb(x), -14);
  const auto fraction = static_cast<int>(std::nearbyint(std::ldexp(std::fabs(x), 10 - exponent)));
  // 2048 (rounded up to the next power of two) carries into the exponent by itself.
  return {static_cast<uint16_t>((x < 0 ? 0x8000 : 0) + ((exponent + 14) << 10) + fraction)};
}

// A contiguous tensor that owns its memory, filled with values that T can hold.
template <class T>
struct Array {
  std::vector<T> data;
  TensorView view;

  Array() = default;
  explicit Array(std::vector<int64_t> shape) {
    view.dtype = DTypeOf<T>::value;
    view.ndim = static_cast<int>(shape.size());
    int64_t n = 1;
    for (int i = view.ndim - 1; i >= 0; --i) {
      view.sizes[i] = shape[static_cast<size_t>(i)];
      view.strides[i] = n;
      n *= view.sizes[i];
    }
    data.resize(static_cast<size_t>(n));
    view.data = data.data();
  }
  Array(Array&&) = default;
  Array(const Array&) = delete;
  Array& operator=(Array&&) = default;

  double operator[](int64_t i) const { return to_double(data[static_cast<size_t>(i)]); }
  int64_t size() const { return static_cast<int64_t>(data.size()); }
  std::vector<double> values() const {
    std::vector<double> v;
    for (const T& x : data) v.push_back(to_double(x));
    return v;
  }
};

template <class T>
Array<T> random(std::vector<int64_t> shape, double scale = 1) {
  static std::mt19937 generator(1);
  Array<T> a(std::move(shape));
  for (T& x : a.data) x = from_double<T>(scale * std::normal_distribution<double>()(generator));
  return a;
}

template <class T>
constexpr double tolerance() {
  switch (DTypeOf<T>::value) {
    case DType::f64:
      return 1e-12;
    case DType::f32:
      return 3e-6;
    case DType::f16:
      return 2e-3;
    default:
      return 1.6e-2;
  }
}

// |got - want| <= tolerance * max(1, largest |want|), everywhere.
template <class T>
void check_close(const char* what, const Array<T>& got, const std::vector<double>& want, double of) {
  double scale = 1, worst = 0;
  for (const double w : want) scale = std::max(scale, std::fabs(w));
  bool ok = got.data.size() == want.size();
  for (size_t i = 0; ok && i < want.size(); ++i) {
    const double error = std::fabs(got[static_cast<int64_t>(i)] - want[i]);
    if (!(error <= of * scale)) ok = false;
    worst = std::max(worst, error);
  }
  if (!ok) {
    report_failure(std::string(what) + " as " + name_of(DTypeOf<T>::value) + ": error " +
                   std::to_string(worst) + ", scale " + std::to_string(scale));
  }
}
template <class T>
void check_close(const char* what, const Array<T>& got, const std::vector<double>& want) {
  check_close(what, got, want, tolerance<T>());
}

// f(T{}) for every floating dtype.
template <class F>
void for_floats(F&& f) {
  f(float{});
  f(double{});
  f(Half{});
  f(BFloat16{});
}

}  // namespace va::test
