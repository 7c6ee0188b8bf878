// SPDX-License-Identifier: Apache-2.0
#include "kernels/group_norm/group_norm.h"

#include <algorithm>
#include <string>

#include "core/dispatch.h"

namespace va {
namespace {

DType statistics_dtype(DType x) { return x == DType::f64 ? DType::f64 : DType::f32; }

void check_contiguous_as(const TensorView& x, const char* what, std::initializer_list<int64_t> shape,
                         DType dtype, const TensorView& first) {
  check_shape(x, what, shape);
  check_dtype(x, what, {dtype});
  check_device(x, what, first);
  check_contiguous(x, what);
}

// Checks x, mean and variance; returns the number of groups.
int64_t check_input(const TensorView& x, const TensorView& mean, const TensorView& variance) {
  const auto [batch, pixels, channels] = x.shape<3>("group_norm: x");
  check_dtype(x, "group_norm: x", {DType::f32, DType::f64, DType::f16, DType::bf16});
  check_contiguous(x, "group_norm: x");
  const int64_t groups = mean.shape<2>("group_norm: mean")[1];
  const DType stats = statistics_dtype(x.dtype);
  if (groups < 1 || channels % groups)
    fail("group_norm: groups must divide the " + std::to_string(channels) + " channels, got " +
         std::to_string(groups));
  check_contiguous_as(mean, "group_norm: mean", {batch, groups}, stats, x);
  check_contiguous_as(variance, "group_norm: variance", {batch, groups}, stats, x);
  return groups;
}

// y may be stored in 16 bits beside an f32 x.
void check_output(const TensorView& y, const char* what, const TensorView& x) {
  check_shape(y, what, {x.sizes[0], x.sizes[1], x.sizes[2]});
  if (!(x.dtype == DType::f32 && (y.dtype == DType::f16 || y.dtype == DType::bf16)))
    check_dtype(y, what, {x.dtype});
  check_device(y, what, x);
  check_contiguous(y, what);
}

}  // namespace

int64_t group_norm_parts(int64_t pixels, int64_t channels) {
  constexpr int64_t kPartElements = 16384;  // a part stays in the first-level cache or near it
  const int64_t rows = std::max<int64_t>(1, kPartElements / std::max<int64_t>(channels, 1));
  return std::max<int64_t>(1, (pixels + rows - 1) / rows);
}

void group_norm_statistics(const GroupNormStatistics& a, Stream stream) {
  const int64_t groups = check_input(a.x, a.mean, a.variance);
  const int64_t batch = a.x.sizes[0], parts = group_norm_parts(a.x.sizes[1], a.x.sizes[2]);
  check_contiguous_as(a.workspace, "group_norm: workspace", {batch, parts, 2, groups}, a.mean.dtype, a.x);
  if (a.x.numel() == 0) return;
  dispatch_device(
      a.x.device, "group_norm", [&](auto isa) { cpu::group_norm_statistics<isa()>(a); },
      [&] { cuda::group_norm_statistics(a, stream); });
}

void group_norm_forward(const GroupNormForward& a, Stream stream) {
  check_input(a.x, a.mean, a.variance);
  const int64_t channels = a.x.sizes[2];
  check_output(a.y, "group_norm: y", a.x);
  check_contiguous_as(a.weight, "group_norm: weight", {channels}, a.y.dtype, a.x);
  check_contiguous_as(a.bias, "group_norm: bias", {channels}, a.y.dtype, a.x);
  if (a.x.numel() == 0) return;
  dispatch_device(
      a.x.device, "group_norm", [&](auto isa) { cpu::group_norm_forward<isa()>(a); },
      [&] { cuda::group_norm_forward(a, stream); });
}

void group_norm_backward(const GroupNormBackward& a, Stream stream) {
  check_input(a.x, a.mean, a.variance);
  const int64_t batch = a.x.sizes[0], channels = a.x.sizes[2];
  const DType stats = statistics_dtype(a.x.dtype);
  check_output(a.dy, "group_norm: dy", a.x);
  check_contiguous_as(a.weight, "group_norm: weight", {channels}, a.dy.dtype, a.x);
  check_contiguous_as(a.bias, "group_norm: bias", {channels}, a.dy.dtype, a.x);
  check_contiguous_as(a.dx, "group_norm: dx", {batch, a.x.sizes[1], channels}, a.x.dtype, a.x);
  check_contiguous_as(a.dweight, "group_norm: dweight", {channels}, stats, a.x);
  check_contiguous_as(a.dbias, "group_norm: dbias", {channels}, stats, a.x);
  check_contiguous_as(a.workspace, "group_norm: workspace",
                      {batch, group_norm_parts(a.x.sizes[1], channels), 2, channels}, stats, a.x);
  if (channels == 0) return;
  dispatch_device(
      a.x.device, "group_norm", [&](auto isa) { cpu::group_norm_backward<isa()>(a); },
      [&] { cuda::group_norm_backward(a, stream); });
}

}  // namespace va
