// SPDX-License-Identifier: Apache-2.0
// TensorView: a tensor that somebody else owns. Kernels never allocate; they fill views.
#pragma once
#include <array>
#include <cstdint>

#include "core/check.h"
#include "core/device.h"
#include "core/dtype.h"

namespace va {

struct TensorView {
  static constexpr int kMaxDims = 8;

  void* data = nullptr;
  DType dtype = DType::f32;
  Device device;
  int ndim = -1;  // -1: an argument that was not given
  int64_t sizes[kMaxDims] = {};
  int64_t strides[kMaxDims] = {};  // in elements

  bool defined() const { return ndim >= 0; }

  template <class T>
  T* ptr() const {
    return static_cast<T*>(data);
  }

  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= sizes[i];
    return defined() ? n : 0;
  }

  // const auto [rows, dim] = x.shape<2>("layer_norm: x");
  template <int N>
  std::array<int64_t, N> shape(const char* what) const {
    if (ndim != N) fail_ndim(*this, what, N);
    std::array<int64_t, N> s{};
    for (int i = 0; i < N; ++i) s[i] = sizes[i];
    return s;
  }

  // The same memory as [rows, last]: leading axes that lie one after another are merged.
  TensorView as_rows(const char* what) const {
    if (!defined()) return *this;
    if (ndim == 0) fail_ndim(*this, what, 2);
    TensorView v = *this;
    v.ndim = 2;
    v.sizes[1] = sizes[ndim - 1];
    v.strides[1] = strides[ndim - 1];
    v.sizes[0] = 1;
    v.strides[0] = v.sizes[1];
    for (int i = ndim - 2; i >= 0; --i) {
      if (sizes[i] == 1) continue;
      if (v.sizes[0] == 1)
        v.strides[0] = strides[i];
      else if (strides[i] != v.strides[0] * v.sizes[0] && numel() > 0)
        check_contiguous(*this, what);
      v.sizes[0] *= sizes[i];
    }
    return v;
  }

  // The same memory as one axis.
  TensorView flat(const char* what) const {
    if (!defined()) return *this;
    check_contiguous(*this, what);
    TensorView v = *this;
    v.ndim = 1;
    v.sizes[0] = numel();
    v.strides[0] = 1;
    return v;
  }

  bool is_contiguous() const {
    int64_t expected = 1;
    for (int i = ndim - 1; i >= 0; --i) {
      if (sizes[i] != 1 && strides[i] != expected) return numel() == 0;
      expected *= sizes[i];
    }
    return true;
  }
};

}  // namespace va
