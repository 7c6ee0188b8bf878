// SPDX-License-Identifier: Apache-2.0
#include "core/check.h"

#include <algorithm>

#include "core/tensor_view.h"

namespace va {
namespace {

std::string list_string(const int64_t* values, size_t n) {
  std::string s = "[";
  for (size_t i = 0; i < n; ++i) s += (i ? ", " : "") + std::to_string(values[i]);
  return s + "]";
}

std::string device_string(Device d) {
  return d.type == DeviceType::cpu ? "cpu" : "cuda:" + std::to_string(d.index);
}

std::string layout_string(const TensorView& x) {
  return shape_string(x) + " with strides " +
         list_string(x.strides, static_cast<size_t>(std::max(x.ndim, 0)));
}

void require_given(const TensorView& x, const char* what) {
  if (!x.defined()) fail(std::string(what) + " is required");
}

}  // namespace

std::string shape_string(const TensorView& x) {
  return list_string(x.sizes, static_cast<size_t>(std::max(x.ndim, 0)));
}

void fail(const std::string& message) { throw Error(message); }

void fail_ndim(const TensorView& x, const char* what, int expected) {
  require_given(x, what);
  fail(std::string(what) + " must have " + std::to_string(expected) + " dimensions, got shape " +
       shape_string(x));
}

void check_shape(const TensorView& x, const char* what, std::initializer_list<int64_t> expected) {
  require_given(x, what);
  const int n = static_cast<int>(expected.size());
  if (x.ndim != n || !std::equal(expected.begin(), expected.end(), x.sizes)) {
    fail(std::string(what) + " must be " + list_string(expected.begin(), expected.size()) + ", got " +
         shape_string(x));
  }
}

void check_dtype(const TensorView& x, const char* what, std::initializer_list<DType> allowed) {
  require_given(x, what);
  std::string names;
  for (DType t : allowed) {
    if (x.dtype == t) return;
    names += (names.empty() ? "" : " or ") + std::string(name_of(t));
  }
  throw TypeError(std::string(what) + " must be " + names + ", got " + name_of(x.dtype));
}

void check_like(const TensorView& x, const char* what, const TensorView& first) {
  check_dtype(x, what, {first.dtype});
  check_device(x, what, first);
}

void check_device(const TensorView& x, const char* what, const TensorView& first) {
  require_given(x, what);
  if (x.device != first.device) {
    fail(std::string(what) + " must be on " + device_string(first.device) + ", got " +
         device_string(x.device));
  }
}

void check_contiguous(const TensorView& x, const char* what) {
  require_given(x, what);
  if (!x.is_contiguous()) fail(std::string(what) + " must be contiguous, got " + layout_string(x));
}

void check_dense(const TensorView& x, const char* what) {
  require_given(x, what);
  if (x.is_contiguous()) return;
  // Walk the axes from the innermost outwards: each must start where the one before it ends.
  int64_t expected = 1;
  for (bool moved = true; moved;) {
    moved = false;
    for (int i = 0; i < x.ndim; ++i) {
      if (x.sizes[i] != 1 && x.strides[i] == expected) {
        expected *= x.sizes[i];
        moved = true;
      }
    }
  }
  if (expected != x.numel())
    fail(std::string(what) + " must lie in memory without holes, got " + layout_string(x));
}

void check_same_layout(const TensorView& x, const char* what, const TensorView& first) {
  require_given(x, what);
  bool same = x.ndim == first.ndim;
  for (int i = 0; same && i < x.ndim; ++i) {
    same = x.sizes[i] == first.sizes[i] && (x.sizes[i] <= 1 || x.strides[i] == first.strides[i]);
  }
  if (!same)
    fail(std::string(what) + " must be laid out as " + layout_string(first) + ", got " + layout_string(x));
}

}  // namespace va
