// SPDX-License-Identifier: Apache-2.0
#include "kernels/cross_entropy/cross_entropy.h"

#include "core/dispatch.h"

namespace va {
namespace {

DType statistics_dtype(DType x) { return x == DType::f64 ? DType::f64 : DType::f32; }

void check_rows(const TensorView& x, const char* what, int64_t rows, int64_t classes,
                const TensorView& first) {
  check_shape(x, what, {rows, classes});
  check_device(x, what, first);
  check(rows == 0 || classes <= 1 || x.strides[1] == 1, "cross_entropy: the last axis must be contiguous");
}

void check_vector(const TensorView& x, const char* what, int64_t n, const TensorView& logits) {
  check_shape(x, what, {n});
  check_dtype(x, what, {statistics_dtype(logits.dtype)});
  check_device(x, what, logits);
  check_contiguous(x, what);
}

void check_target(const TensorView& target, const TensorView& logits, int64_t ignore_index) {
  const int64_t rows = logits.sizes[0], classes = logits.sizes[1];
  check_dtype(target, "cross_entropy: target", {DType::i64, statistics_dtype(logits.dtype)});
  check_device(target, "cross_entropy: target", logits);
  check_contiguous(target, "cross_entropy: target");
  if (target.dtype != DType::i64) return check_shape(target, "cross_entropy: target", {rows, classes});
  check_shape(target, "cross_entropy: target", {rows});
  if (runs_on_gpu(target.device)) return;  // a kernel checks these
  const int64_t* t = target.ptr<int64_t>();
  for (int64_t i = 0; i < rows; ++i) {
    if ((t[i] < 0 || t[i] >= classes) && t[i] != ignore_index) {
      fail("cross_entropy: target must be in [0, " + std::to_string(classes) + ") or " +
           std::to_string(ignore_index) + ", got " + std::to_string(t[i]) + " at row " + std::to_string(i));
    }
  }
}

void check_smoothing(double e) {
  if (!(e >= 0 && e <= 1)) fail("cross_entropy: label_smoothing must be in [0, 1], got " + std::to_string(e));
}

}  // namespace

void cross_entropy_forward(const CrossEntropyForward& a, Stream stream) {
  const auto [rows, classes] = a.logits.shape<2>("cross_entropy: logits");
  check_dtype(a.logits, "cross_entropy: logits", {DType::f32, DType::f64, DType::f16, DType::bf16});
  check_rows(a.logits, "cross_entropy: logits", rows, classes, a.logits);
  check_smoothing(a.label_smoothing);
  check_target(a.target, a.logits, a.ignore_index);
  check_vector(a.loss, "cross_entropy: loss", a.reduction == Reduction::none ? rows : 1, a.logits);
  if (a.reduction != Reduction::none) check_vector(a.losses, "cross_entropy: losses", rows, a.logits);
  check_vector(a.lse, "cross_entropy: lse", rows, a.logits);
  dispatch_device(
      a.logits.device, "cross_entropy", [&](auto isa) { cpu::cross_entropy_forward<isa()>(a); },
      [&] { cuda::cross_entropy_forward(a, stream); });
}

void cross_entropy_backward(const CrossEntropyBackward& a, Stream stream) {
  const auto [rows, classes] = a.logits.shape<2>("cross_entropy: logits");
  check_dtype(a.logits, "cross_entropy: logits", {DType::f32, DType::f64, DType::f16, DType::bf16});
  check_rows(a.logits, "cross_entropy: logits", rows, classes, a.logits);
  check_smoothing(a.label_smoothing);
  check_target(a.target, a.logits, a.ignore_index);
  check_vector(a.dloss, "cross_entropy: dloss", a.reduction == Reduction::none ? rows : 1, a.logits);
  check_vector(a.lse, "cross_entropy: lse", rows, a.logits);
  if (runs_on_gpu(a.logits.device)) check_vector(a.scale, "cross_entropy: scale", 1, a.logits);
  if (a.dlogits.defined()) {
    check_rows(a.dlogits, "cross_entropy: dlogits", rows, classes, a.logits);
    check_like(a.dlogits, "cross_entropy: dlogits", a.logits);
  }
  if (a.dtarget.defined()) {
    check(a.target.dtype != DType::i64, "cross_entropy: class indices have no gradient");
    check_rows(a.dtarget, "cross_entropy: dtarget", rows, classes, a.logits);
    check_like(a.dtarget, "cross_entropy: dtarget", a.target);
  }
  if (rows == 0 || classes == 0) return;
  dispatch_device(
      a.logits.device, "cross_entropy", [&](auto isa) { cpu::cross_entropy_backward<isa()>(a); },
      [&] { cuda::cross_entropy_backward(a, stream); });
}

}  // namespace va
