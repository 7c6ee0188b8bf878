// SPDX-License-Identifier: Apache-2.0
// Python tensor -> TensorView, without copying and without knowing torch. Tried in this order:
//   1. the DLPack exchange table of the object's type (torch >= 2.10): no capsule, no synchronisation;
//   2. the buffer protocol (numpy);
//   3. __dlpack__() (everything else).
// None becomes a view that is not defined(). A view is valid for the duration of the call.
#pragma once
#include <pybind11/pybind11.h>

#include <optional>
#include <vector>

#include "core/tensor_view.h"

namespace va {

// A TensorView together with what keeps its memory alive.
class BorrowedTensor {
 public:
  explicit BorrowedTensor(pybind11::handle source);  // throws TypeError when source is no tensor
  TensorView view;

 private:
  void read(pybind11::handle source);

  pybind11::object keep_;  // a memoryview or a capsule
};

// Errors -> ValueError / TypeError.
void register_errors();

}  // namespace va

namespace pybind11::detail {

template <>
struct type_caster<va::TensorView> {
  static constexpr auto name = const_name("Tensor | None");
  template <class>
  using cast_op_type = const va::TensorView&;

  bool load(handle source, bool) {
    borrowed_.emplace(source);
    return true;
  }
  operator const va::TensorView&() { return borrowed_->view; }

 private:
  std::optional<va::BorrowedTensor> borrowed_;
};

// A list or tuple of tensors; None entries become views that are not defined().
template <>
struct type_caster<std::vector<va::TensorView>> {
  static constexpr auto name = const_name("Sequence[Tensor | None]");
  template <class>
  using cast_op_type = const std::vector<va::TensorView>&;

  bool load(handle source, bool) {
    if (!PyList_Check(source.ptr()) && !PyTuple_Check(source.ptr())) return false;
    // A tuple of our own: another thread may change the list while the kernel runs.
    keep_ = reinterpret_steal<object>(PySequence_Tuple(source.ptr()));
    if (!keep_) throw error_already_set();
    const Py_ssize_t n = PyTuple_GET_SIZE(keep_.ptr());
    borrowed_.reserve(static_cast<size_t>(n));
    views_.reserve(static_cast<size_t>(n));
    for (Py_ssize_t i = 0; i < n; ++i) {
      views_.push_back(borrowed_.emplace_back(PyTuple_GET_ITEM(keep_.ptr(), i)).view);
    }
    return true;
  }
  operator const std::vector<va::TensorView>&() { return views_; }

 private:
  object keep_;
  std::vector<va::BorrowedTensor> borrowed_;
  std::vector<va::TensorView> views_;
};

}  // namespace pybind11::detail
