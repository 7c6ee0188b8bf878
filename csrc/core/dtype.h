// SPDX-License-Identifier: Apache-2.0
// Element types, and the two 16-bit storage types that the CPU back end converts by hand.
#pragma once
#include <cstdint>
#include <cstring>

namespace va {

enum class DType : uint8_t { f32, f64, f16, bf16, u8, i32, i64, boolean };

inline const char* name_of(DType t) {
  constexpr const char* kNames[] = {"float32", "float64", "float16", "bfloat16",
                                    "uint8",   "int32",   "int64",   "bool"};
  return kNames[static_cast<int>(t)];
}

inline int size_of(DType t) {
  constexpr int kSizes[] = {4, 8, 2, 2, 1, 4, 8, 1};
  return kSizes[static_cast<int>(t)];
}

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<Half> {
  static constexpr DType value = DType::f16;
};
template <>
struct DTypeOf<BFloat16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::u8;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct DTypeOf<bool> {
  static constexpr DType value = DType::boolean;
};

// The type in which values of storage type T are computed.
template <class T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class T>
using compute_t = typename ComputeType<T>::type;

}  // namespace va
