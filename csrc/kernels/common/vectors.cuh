// SPDX-License-Identifier: Apache-2.0
// Memory-bound kernels: several elements a thread in 16-byte accesses, where pointers and strides allow it.
#pragma once
#include <algorithm>

#include "core/tensor_view.h"
#include "kernels/common/simt.cuh"

namespace va::simt {

// Whether every row of the last axis starts on a 16-byte boundary; true for an argument that was not given.
inline bool aligned16(const TensorView& v) {
  if (!v.defined()) return true;
  if (reinterpret_cast<uintptr_t>(v.data) % 16 != 0) return false;
  for (int i = 0; i + 1 < v.ndim; ++i) {
    if (v.sizes[i] > 1 && v.strides[i] * size_of(v.dtype) % 16 != 0) return false;
  }
  return true;
}

// n consecutive values of T as numbers of type C; in 16-byte accesses where n values are that many bytes, and
// p must then be aligned.
template <int n, class T, class C = compute_t<T>>
VA_DEVICE void load_values(C (&out)[n], const T* p) {
  if constexpr (n % Pack<T>::kSize == 0) {
#pragma unroll
    for (int i = 0; i < n; i += Pack<T>::kSize) {
      const Pack<T> pack = load16(p + i);
#pragma unroll
      for (int j = 0; j < Pack<T>::kSize; ++j) out[i + j] = static_cast<C>(to_float(pack.v[j]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < n; ++i) out[i] = static_cast<C>(to_float(p[i]));
  }
}
template <int n, class T, class C = compute_t<T>>
VA_DEVICE void store_values(T* p, const C (&values)[n]) {
  if constexpr (n % Pack<T>::kSize == 0) {
#pragma unroll
    for (int i = 0; i < n; i += Pack<T>::kSize) {
      Pack<T> pack;
#pragma unroll
      for (int j = 0; j < Pack<T>::kSize; ++j) pack.v[j] = from_float<T>(values[i + j]);
      store16(p + i, pack);
    }
  } else {
#pragma unroll
    for (int i = 0; i < n; ++i) p[i] = from_float<T>(values[i]);
  }
}

// f(std::integral_constant<int, elements per access>): a whole 16 bytes, or 1.
template <class T, class F>
void dispatch_vector(bool aligned, F&& f) {
  if (aligned) {
    f(std::integral_constant<int, Pack<T>::kSize>{});
  } else {
    f(std::integral_constant<int, 1>{});
  }
}

// Blocks for `work` units of which one block does `per_block` at a time, walking on by the grid's size:
// enough to fill the GPU.
inline unsigned blocks_for(int64_t work, int64_t per_block) {
  const int64_t most = int64_t{16} * multiprocessors();
  return static_cast<unsigned>(std::min((work + per_block - 1) / per_block, most));
}

}  // namespace va::simt
