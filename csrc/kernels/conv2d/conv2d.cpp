// SPDX-License-Identifier: Apache-2.0
#include "kernels/conv2d/conv2d.h"

#include <algorithm>
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

// What a convolution adds to its sums, and the result: bias, residual and y, [B, v, u, N].
void check_epilogue(const TensorView& bias, const TensorView& residual, const TensorView& y,
                    const TensorView& x) {
  const auto [batch, v, u, n] = y.shape<4>("conv2d: y");
  check_image(y, "conv2d: y", {x.sizes[0], v, u, n});
  check_wide(y, "conv2d: y", x);
  if (bias.defined()) {
    check_shape(bias, "conv2d: bias", {n});
    check_like(bias, "conv2d: bias", x);
    check_contiguous(bias, "conv2d: bias");
  }
  if (residual.defined()) {
    check_image(residual, "conv2d: residual", {batch, v, u, n});
    check_like(residual, "conv2d: residual", y);
  }
}

// The matrix [n, k] that a weight is packed as.
TensorView matrix_like(TensorView x, int64_t n, int64_t k) {
  x.ndim = 2;
  x.sizes[0] = n;
  x.sizes[1] = k;
  return x;
}

// x is an image of f32 on the CPU; packed is the points of a weight [n, C].
void check_winograd(const TensorView& x) {
  const auto [batch, h, w, c] = x.shape<4>("conv2d: x");
  check(!runs_on_gpu(x.device), "conv2d: Winograd's algorithm is for the CPU");
  check_dtype(x, "conv2d: x", {DType::f32});
  check_image(x, "conv2d: x", {batch, h, w, c});
}

void check_points(const TensorView& packed, const TensorView& like, int64_t n, int64_t c, bool upsample) {
  check_shape(packed, "conv2d: packed", {upsample ? 9 : 16, linear_packed_numel(matrix_like(like, n, c))});
  check_like(packed, "conv2d: packed", like);
  check_contiguous(packed, "conv2d: packed");
}

void check_window(const Window& w) {
  check(w.kernel_h > 0 && w.kernel_w > 0, "conv2d: kernel sizes must be positive");
  check(w.stride > 0, "conv2d: stride must be positive");
}

}  // namespace

void conv2d_forward(const Conv2dForward& a, Stream stream) {
  const auto [batch, h, w, c] = a.x.shape<4>("conv2d: x");
  check_dtype(a.x, "conv2d: x", {DType::f32, DType::f64, DType::f16, DType::bf16});
  check_window(a.window);
  check_image(a.x, "conv2d: x", {batch, h, w, c});
  check_epilogue(a.bias, a.residual, a.y, a.x);
  const int64_t n = a.y.sizes[3], k = a.window.kernel_h * a.window.kernel_w * c;
  if (a.packed.defined()) {
    check_like(a.packed, "conv2d: weight", a.x);
    check_contiguous(a.packed, "conv2d: packed");
    check(a.packed.numel() >= linear_packed_numel(matrix_like(a.x, n, k)),
          "conv2d: packed is smaller than the weight");
  } else {
    check_shape(a.weight, "conv2d: weight", {n, k});
    check_like(a.weight, "conv2d: weight", a.x);
    check_contiguous(a.weight, "conv2d: weight");
  }
  if (a.y.numel() == 0) return;
  dispatch_device(
      a.x.device, "conv2d", [&](auto isa) { cpu::conv2d_forward<isa()>(a); },
      [&] { cuda::conv2d_forward(a, stream); });
}

void conv2d_winograd(const Conv2dWinograd& a) {
  check_winograd(a.x);
  check_epilogue(a.bias, a.residual, a.y, a.x);
  const auto [batch, v, u, n] = a.y.shape<4>("conv2d: y");
  if (a.upsample) check_shape(a.y, "conv2d: y", {batch, v, 2 * a.x.sizes[2], n});
  check_points(a.packed, a.x, n, a.x.sizes[3], a.upsample);
  check(a.pad_top >= 0 && a.pad_left >= 0, "conv2d: padding must not be negative");
  if (a.y.numel() == 0) return;
  dispatch_device(a.x.device, "conv2d", [&](auto isa) { cpu::conv2d_winograd<isa()>(a); }, [] {});
}

void conv2d_winograd_pack(const Conv2dWinogradPack& a) {
  const auto [n, c, i, j] = a.weight.shape<4>("conv2d: weight");
  check(!runs_on_gpu(a.weight.device), "conv2d: Winograd's algorithm is for the CPU");
  check_dtype(a.weight, "conv2d: weight", {DType::f32});
  check_shape(a.weight, "conv2d: weight", {n, c, 3, 3});
  check_points(a.packed, a.weight, n, c, a.upsample);
  dispatch_device(a.weight.device, "conv2d", [&](auto isa) { cpu::conv2d_winograd_pack<isa()>(a); }, [] {});
}

void conv2d_winograd_weight(const Conv2dWinogradWeight& a) {
  check_winograd(a.x);
  const auto [batch, h, w, c] = a.x.shape<4>("conv2d: x");
  const auto [yb, v, u, n] = a.dy.shape<4>("conv2d: dy");
  check_image(a.dy, "conv2d: dy", {batch, a.upsample ? 2 * h : v, a.upsample ? 2 * w : u, n});
  check_like(a.dy, "conv2d: dy", a.x);
  check_shape(a.dweight, "conv2d: dweight", {n, c, 3, 3});
  check_like(a.dweight, "conv2d: dweight", a.x);
  if (a.dbias.defined()) {
    check_shape(a.dbias, "conv2d: dbias", {n});
    check_like(a.dbias, "conv2d: dbias", a.x);
    check_contiguous(a.dbias, "conv2d: dbias");
  }
  check(a.pad_top >= 0 && a.pad_left >= 0, "conv2d: padding must not be negative");
  check_like(a.workspace, "conv2d: workspace", a.x);
  check_contiguous(a.workspace, "conv2d: workspace");
  check(a.workspace.numel() >= conv2d_winograd_workspace(a.dy, c, a.upsample),
        "conv2d: workspace is too small");
  if (a.dweight.numel() == 0) return;
  dispatch_device(a.x.device, "conv2d", [&](auto isa) { cpu::conv2d_winograd_weight<isa()>(a); }, [] {});
}

int64_t conv2d_winograd_parts(int64_t tiles, int64_t n, int64_t channels) {
  constexpr int64_t kLeastTiles = 512, kMostParts = 8, kMostFloats = 1 << 22;  // of the sums of all parts
  const int64_t room = std::max<int64_t>(1, kMostFloats / std::max<int64_t>(1, 16 * n * channels));
  return std::clamp<int64_t>(tiles / kLeastTiles, 1, std::min(kMostParts, room));
}

int64_t conv2d_winograd_workspace(const TensorView& dy, int64_t channels, bool upsample) {
  const auto [batch, v, u, n] = dy.shape<4>("conv2d: dy");
  const int64_t parts = conv2d_winograd_parts(batch * ((v + 1) / 2) * ((u + 1) / 2), n, channels);
  const int64_t width = (channels + 15) / 16 * 16;
  return parts * n * ((upsample ? 9 : 16) * width + 1);
}

void conv2d_backward_weight(const Conv2dBackwardWeight& a, Stream stream) {
  const auto [batch, v, u, n] = a.dy.shape<4>("conv2d: dy");
  const auto [xb, h, w, c] = a.x.shape<4>("conv2d: x");
  check_dtype(a.dy, "conv2d: dy", {DType::f32, DType::f64, DType::f16, DType::bf16});
  check_window(a.window);
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
    if (runs_on_gpu(device)) {
      const DeviceGuard guard(device);
      return cuda::conv2d_workspace(pixels, n, k);
    }
  }
  return 0;
}

}  // namespace va
