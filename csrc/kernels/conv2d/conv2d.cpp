// SPDX-License-Identifier: Apache-2.0
#include "kernels/conv2d/conv2d.h"

#include <string>

#include "core/dispatch.h"
#include "kernels/linear/linear.h"

namespace va {
namespace {

void check_image(const TensorView& x, const char* what, std::initializer_list<int64_t> shape) {
  check_shape(x, what, shape);
  if (x.numel() > 0 && x.sizes[3] > 1 && x.strides[3] != 1)
    fail(std::string(what) + " must have a contiguous last axis");
}

void check_wide(const TensorView& x, const char* what, const TensorView& first) {
  if (!(first.dtype != DType::f64 && x.dtype == DType::f32)) check_dtype(x, what, {first.dtype});
  check_device(x, what, first);
}

void check_window(const Window& w) {
  check(w.kernel_h > 0 && w.kernel_w > 0, "conv2d: kernel sizes must be positive");
  check(w.stride > 0 && w.dilation > 0, "conv2d: stride and dilation must be positive");
}

}  // namespace

void conv2d_forward(const Conv2dForward& a, Stream stream) {
  const auto [batch, h, w, c] = a.x.shape<4>("conv2d: x");
  const auto [yb, v, u, n] = a.y.shape<4>("conv2d: y");
  const int64_t k = a.window.kernel_h * a.window.kernel_w * c;
  check_dtype(a.x, "conv2d: x", {DType::f32, DType::f64, DType::f16, DType::bf16});
  check_window(a.window);
  check_image(a.x, "conv2d: x", {batch, h, w, c});
  check_image(a.y, "conv2d: y", {batch, v, u, n});
  check_wide(a.y, "conv2d: y", a.x);
  if (a.packed.defined()) {
    TensorView whole = a.x;
    whole.ndim = 2;
    whole.sizes[0] = n;
    whole.sizes[1] = k;
    check_like(a.packed, "conv2d: weight", a.x);
    check_contiguous(a.packed, "conv2d: packed");
    check(a.packed.numel() >= linear_packed_numel(whole), "conv2d: packed is smaller than the weight");
  } else {
    check_shape(a.weight, "conv2d: weight", {n, k});
    check_like(a.weight, "conv2d: weight", a.x);
    check_contiguous(a.weight, "conv2d: weight");
  }
  if (a.bias.defined()) {
    check_shape(a.bias, "conv2d: bias", {n});
    check_like(a.bias, "conv2d: bias", a.x);
    check_contiguous(a.bias, "conv2d: bias");
  }
  if (a.residual.defined()) {
    check_image(a.residual, "conv2d: residual", {batch, v, u, n});
    check_like(a.residual, "conv2d: residual", a.y);
  }
  if (a.y.numel() == 0) return;
  dispatch_device(
      a.x.device, "conv2d", [&](auto isa) { cpu::conv2d_forward<isa()>(a); },
      [&] { cuda::conv2d_forward(a, stream); });
}

void conv2d_winograd(const Conv2dWinograd& a) {
  const auto [batch, h, w, c] = a.x.shape<4>("conv2d: x");
  const auto [yb, v, u, n] = a.y.shape<4>("conv2d: y");
  check(!runs_on_gpu(a.x.device), "conv2d: Winograd's algorithm is for the CPU");
  check_dtype(a.x, "conv2d: x", {DType::f32});
  check_image(a.x, "conv2d: x", {batch, h, w, c});
  check_image(a.y, "conv2d: y", {batch, a.upsample ? 2 * h : v, a.upsample ? 2 * w : u, n});
  check_like(a.y, "conv2d: y", a.x);
  TensorView point = a.x;
  point.ndim = 2;
  point.sizes[0] = n;
  point.sizes[1] = c;
  check_shape(a.packed, "conv2d: packed", {a.upsample ? 9 : 16, linear_packed_numel(point)});
  check_like(a.packed, "conv2d: packed", a.x);
  check_contiguous(a.packed, "conv2d: packed");
  if (a.bias.defined()) {
    check_shape(a.bias, "conv2d: bias", {n});
    check_like(a.bias, "conv2d: bias", a.x);
    check_contiguous(a.bias, "conv2d: bias");
  }
  if (a.residual.defined()) {
    check_image(a.residual, "conv2d: residual", {batch, v, u, n});
    check_like(a.residual, "conv2d: residual", a.x);
  }
  check(a.pad_top >= 0 && a.pad_left >= 0, "conv2d: padding must not be negative");
  if (a.y.numel() == 0) return;
  dispatch_device(a.x.device, "conv2d", [&](auto isa) { cpu::conv2d_winograd<isa()>(a); }, [] {});
}

void conv2d_backward_weight(const Conv2dBackwardWeight& a, Stream stream) {
  const auto [batch, v, u, n] = a.dy.shape<4>("conv2d: dy");
  const auto [xb, h, w, c] = a.x.shape<4>("conv2d: x");
  check_dtype(a.dy, "conv2d: dy", {DType::f32, DType::f64, DType::f16, DType::bf16});
  check_window(a.window);
  check(a.window.dilation == 1, "conv2d: dilation must be 1 in the gradient by the weight");
  check_image(a.dy, "conv2d: dy", {batch, v, u, n});
  check_image(a.x, "conv2d: x", {batch, h, w, c});
  check_like(a.x, "conv2d: x", a.dy);
  check_shape(a.dweight, "conv2d: dweight", {n, a.window.kernel_h * a.window.kernel_w * c});
  check_like(a.dweight, "conv2d: dweight", a.dy);
  check_contiguous(a.dweight, "conv2d: dweight");
  if (a.dweight.numel() == 0) return;
  if (const int64_t needed = conv2d_workspace(a.dy.device, batch * v * u, n, a.dweight.sizes[1])) {
    check_dtype(a.workspace, "conv2d: workspace", {a.dy.dtype == DType::f64 ? DType::f64 : DType::f32});
    check_device(a.workspace, "conv2d: workspace", a.dy);
    check_contiguous(a.workspace, "conv2d: workspace");
    check(a.workspace.numel() >= needed, "conv2d: workspace is too small");
  }
  dispatch_device(
      a.dy.device, "conv2d", [&](auto isa) { cpu::conv2d_backward_weight<isa()>(a); },
      [&] { cuda::conv2d_backward_weight(a, stream); });
}

int64_t conv2d_workspace(Device device, [[maybe_unused]] int64_t pixels, [[maybe_unused]] int64_t n,
                         [[maybe_unused]] int64_t k) {
  if constexpr (kOpHasCuda) {
    if (runs_on_gpu(device)) return cuda::conv2d_workspace(pixels, n, k);
  }
  return 0;
}

}  // namespace va
