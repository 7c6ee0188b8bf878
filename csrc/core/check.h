// SPDX-License-Identifier: Apache-2.0
// Errors and the checks that stand in front of every kernel. Python sees Error as ValueError
// and TypeError as TypeError. Messages read "op: argument must be ..., got ...".
#pragma once
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "core/dtype.h"

namespace va {

struct TensorView;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct TypeError : Error {
  using Error::Error;
};

std::string shape_string(const TensorView& x);
[[noreturn]] void fail(const std::string& message);
[[noreturn]] void fail_ndim(const TensorView& x, const char* what, int expected);

inline void check(bool ok, const char* message) {
  if (!ok) fail(message);
}

// The first tensor of an op sets the dtype and the device that the others must share.
void check_shape(const TensorView& x, const char* what, std::initializer_list<int64_t> expected);
void check_dtype(const TensorView& x, const char* what, std::initializer_list<DType> allowed);
void check_like(const TensorView& x, const char* what, const TensorView& first);  // dtype + device
void check_device(const TensorView& x, const char* what, const TensorView& first);
void check_contiguous(const TensorView& x, const char* what);
// Axes in any order, but no holes and no overlap: an elementwise kernel may run over [data, data + numel).
void check_dense(const TensorView& x, const char* what);
void check_same_layout(const TensorView& x, const char* what, const TensorView& first);  // shape and strides

}  // namespace va
