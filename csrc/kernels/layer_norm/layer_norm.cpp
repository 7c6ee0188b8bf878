// SPDX-License-Identifier: Apache-2.0
#include "kernels/layer_norm/layer_norm.h"

#include "core/dispatch.h"

namespace va {
namespace {

DType statistics_dtype(DType x) { return x == DType::f64 ? DType::f64 : DType::f32; }

void check_rows(const TensorView& x, const char* what, int64_t rows, int64_t dim, const TensorView& first) {
  check_shape(x, what, {rows, dim});
  check_like(x, what, first);
  check(dim <= 1 || x.strides[1] == 1, "layer_norm: the last axis must be contiguous");
}

void check_vector(const TensorView& x, const char* what, int64_t n, DType dtype, const TensorView& first) {
  if (!x.defined()) return;
  check_shape(x, what, {n});
  check_dtype(x, what, {dtype});
  check_device(x, what, first);
  check_contiguous(x, what);
}

}  // namespace

int64_t layer_norm_parts(Device device, int64_t rows) {
  constexpr int64_t kCpuParts = 16;
  if constexpr (kOpHasCuda) {
    if (runs_on_gpu(device)) {
      const DeviceGuard guard(device);
      return cuda::layer_norm_parts(rows);
    }
  }
  return kCpuParts;
}

void layer_norm_forward(const LayerNormForward& a, Stream stream) {
  const auto [rows, dim] = a.x.shape<2>("layer_norm: x");
  const DType stats = statistics_dtype(a.x.dtype);
  check_dtype(a.x, "layer_norm: x", {DType::f32, DType::f64, DType::f16, DType::bf16});
  check_rows(a.x, "layer_norm: x", rows, dim, a.x);
  check_rows(a.y, "layer_norm: y", rows, dim, a.x);
  if (a.residual.defined()) {
    check_rows(a.residual, "layer_norm: residual", rows, dim, a.x);
    check_rows(a.sum, "layer_norm: sum", rows, dim, a.x);
  }
  check_vector(a.weight, "layer_norm: weight", dim, a.x.dtype, a.x);
  check_vector(a.bias, "layer_norm: bias", dim, a.x.dtype, a.x);
  check_vector(a.mean, "layer_norm: mean", rows, stats, a.x);
  check_vector(a.rstd, "layer_norm: rstd", rows, stats, a.x);
  if (rows == 0 || dim == 0) return;
  dispatch_device(
      a.x.device, "layer_norm", [&](auto isa) { cpu::layer_norm_forward<isa()>(a); },
      [&] { cuda::layer_norm_forward(a, stream); });
}

void layer_norm_backward(const LayerNormBackward& a, Stream stream) {
  const auto [rows, dim] = a.dy.shape<2>("layer_norm: dy");
  const DType stats = statistics_dtype(a.dy.dtype);
  check_dtype(a.dy, "layer_norm: dy", {DType::f32, DType::f64, DType::f16, DType::bf16});
  check_rows(a.dy, "layer_norm: dy", rows, dim, a.dy);
  check_rows(a.s, "layer_norm: s", rows, dim, a.dy);
  check_rows(a.dx, "layer_norm: dx", rows, dim, a.dy);
  if (a.dsum.defined()) check_rows(a.dsum, "layer_norm: dsum", rows, dim, a.dy);
  check_vector(a.weight, "layer_norm: weight", dim, a.dy.dtype, a.dy);
  check(a.mean.defined() && a.rstd.defined(), "layer_norm: mean and rstd are required");
  check_vector(a.mean, "layer_norm: mean", rows, stats, a.dy);
  check_vector(a.rstd, "layer_norm: rstd", rows, stats, a.dy);
  check_vector(a.dweight, "layer_norm: dweight", dim, stats, a.dy);
  check_vector(a.dbias, "layer_norm: dbias", dim, stats, a.dy);
  if (a.dweight.defined() || a.dbias.defined()) {
    check_shape(a.workspace, "layer_norm: workspace", {layer_norm_parts(a.dy.device, rows), 2, dim});
    check_dtype(a.workspace, "layer_norm: workspace", {stats});
    check_contiguous(a.workspace, "layer_norm: workspace");
  }
  if (dim == 0) return;
  dispatch_device(
      a.dy.device, "layer_norm", [&](auto isa) { cpu::layer_norm_backward<isa()>(a); },
      [&] { cuda::layer_norm_backward(a, stream); });
}

}  // namespace va
