// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear/linear.h"

#include <cstring>

#include "core/dispatch.h"

namespace va {
namespace {

DType sum_dtype(DType x) { return x == DType::f64 ? DType::f64 : DType::f32; }

void check_rows(const TensorView& x, const char* what, int64_t rows, int64_t cols) {
  check_shape(x, what, {rows, cols});
  if (rows > 0 && cols > 1 && x.strides[1] != 1)
    fail(std::string(what) + " must have a contiguous last axis");
}

// The tensors that may be f32 beside x of a 16-bit dtype.
void check_wide(const TensorView& x, const char* what, const TensorView& first) {
  if (x.dtype != sum_dtype(first.dtype)) check_dtype(x, what, {first.dtype});
  check_device(x, what, first);
}

void check_vector(const TensorView& x, const char* what, int64_t n) {
  check_shape(x, what, {n});
  check_contiguous(x, what);
}

void check_float(const TensorView& x, const char* what) {
  check_dtype(x, what, {DType::f32, DType::f64, DType::f16, DType::bf16});
}

int64_t numel_needed(const TensorView& x, int64_t rows, int64_t cols) {
  TensorView weight = x;
  weight.sizes[0] = rows;
  weight.sizes[1] = cols;
  return linear_packed_numel(weight);
}

}  // namespace

void linear_forward(const LinearForward& a, Stream stream) {
  const auto [m, k] = a.x.shape<2>("linear: x");
  const auto [ym, n] = a.y.shape<2>("linear: y");
  check_float(a.x, "linear: x");
  check_rows(a.x, "linear: x", m, k);
  if (a.residual.defined()) {
    check_rows(a.residual, "linear: residual", m, n);
    check_wide(a.residual, "linear: residual", a.x);
    check_like(a.y, "linear: y", a.residual);
  }
  check_rows(a.y, "linear: y", m, n);
  check_wide(a.y, "linear: y", a.x);
  if (a.packed.defined()) {
    check(!runs_on_gpu(a.x.device), "linear: weights on a GPU are not packed");
    check_like(a.packed, "linear: weight", a.x);
    check_contiguous(a.packed, "linear: packed");
    check(a.first >= 0 && a.packed.numel() >= numel_needed(a.x, a.first + n, k),
          "linear: packed is smaller than the weight");
  } else {
    check_shape(a.weight, "linear: weight", {n, k});
    check_like(a.weight, "linear: weight", a.x);
  }
  if (a.bias.defined()) {
    check_vector(a.bias, "linear: bias", n);
    check_like(a.bias, "linear: bias", a.x);
  }
  if (a.scale.defined()) {
    check_vector(a.scale, "linear: scale", n);
    check_wide(a.scale, "linear: scale", a.x);
  }
  if (a.z.defined()) {
    check_rows(a.z, "linear: z", m, n);
    check_like(a.z, "linear: z", a.x);
  }
  if (m == 0 || n == 0) return;
  dispatch_device(
      a.x.device, "linear", [&](auto isa) { cpu::linear_forward<isa()>(a); },
      [&] { cuda::linear_forward(a, stream); });
}

void linear_backward(const LinearBackward& a, Stream stream) {
  const auto [m, n] = a.dy.shape<2>("linear: dy");
  const TensorView& like = a.dz.defined() ? a.dz : a.dy;  // has the dtype of x
  check_float(like, "linear: dz");
  check_rows(a.dy, "linear: dy", m, n);
  check_wide(a.dy, "linear: dy", like);
  if (a.dz.defined())
    check_rows(a.dz, "linear: dz", m, n);
  else
    check(a.activation == Activation::none && !a.scale.defined(), "linear: dz is required");
  if (a.activation != Activation::none || a.dscale.defined()) {
    check_rows(a.z, "linear: z", m, n);
    check_like(a.z, "linear: z", like);
  }
  if (a.scale.defined()) {
    check_vector(a.scale, "linear: scale", n);
    check_wide(a.scale, "linear: scale", like);
  }
  for (const TensorView* sum : {&a.dbias, &a.dscale}) {
    if (!sum->defined()) continue;
    check_vector(*sum, "linear: dbias and dscale", n);
    check_dtype(*sum, "linear: dbias and dscale", {sum_dtype(like.dtype)});
  }
  if (a.dx.defined()) {
    const auto [dm, k] = a.dx.shape<2>("linear: dx");
    check_rows(a.dx, "linear: dx", m, k);
    check_like(a.dx, "linear: dx", like);
    check_shape(a.weight, "linear: weight", {n, k});
    check_like(a.weight, "linear: weight", like);
    if (a.input.defined()) {
      check_rows(a.input, "linear: input", m, k);
      check_like(a.input, "linear: input", like);
    }
  }
  if (a.dweight.defined()) {
    const auto [dn, k] = a.dweight.shape<2>("linear: dweight");
    check_rows(a.dweight, "linear: dweight", n, k);
    check_like(a.dweight, "linear: dweight", like);
    check_rows(a.x, "linear: x", m, k);
    check_like(a.x, "linear: x", like);
  }
  const bool sums = a.dbias.defined() || a.dscale.defined();
  const int64_t k = a.dweight.defined() ? a.dweight.sizes[1] : 0;
  if (const int64_t needed = linear_workspace(a.dy.device, like.dtype, m, n, k, sums, a.dweight.defined())) {
    check_dtype(a.workspace, "linear: workspace", {sum_dtype(like.dtype)});
    check_device(a.workspace, "linear: workspace", a.dy);
    check_contiguous(a.workspace, "linear: workspace");
    check(a.workspace.numel() >= needed, "linear: workspace is too small");
  }
  dispatch_device(
      a.dy.device, "linear", [&](auto isa) { cpu::linear_backward<isa()>(a); },
      [&] { cuda::linear_backward(a, stream); });
}

int64_t linear_workspace(Device device, [[maybe_unused]] DType dtype, [[maybe_unused]] int64_t rows,
                         int64_t n, [[maybe_unused]] int64_t k, bool sums, [[maybe_unused]] bool dweight) {
  if constexpr (kOpHasCuda) {
    if (runs_on_gpu(device)) {
      const DeviceGuard guard(device);
      return cuda::linear_workspace(dtype, rows, n, k, sums, dweight);
    }
  }
  return sums ? kLinearParts * 2 * n : 0;
}

void linear_force_tile([[maybe_unused]] const std::string& name) {
  if constexpr (kOpHasCuda) cuda::linear_force_tile(name);
}

int64_t linear_packed_numel(const TensorView& weight) {
  int64_t numel = 0;
  dispatch_isa([&](auto isa) { numel = cpu::linear_packed_numel<isa()>(weight); });
  return numel;
}

void linear_pack(const TensorView& weight, const TensorView& packed) {
  weight.shape<2>("linear: weight");
  check_float(weight, "linear: weight");
  check_like(packed, "linear: packed", weight);
  check_shape(packed, "linear: packed", {linear_packed_numel(weight)});
  check_contiguous(packed, "linear: packed");
  if (weight.numel() == 0) return;
  dispatch_device(
      weight.device, "linear", [&](auto isa) { cpu::linear_pack<isa()>(weight, packed); },
      [] { fail("linear: weights on a GPU are not packed"); });
}

uint64_t linear_fingerprint(const TensorView& w) {
  check(w.device.type == DeviceType::cpu, "linear: weights on a GPU are not packed");
  uint64_t hash = 0;
  const auto mix = [&](uint64_t value) {
    hash = (hash ^ value) * 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio
    hash ^= hash >> 32;
  };
  mix(static_cast<uint64_t>(active_isa()));
  mix(reinterpret_cast<uint64_t>(w.data));
  mix(static_cast<uint64_t>(w.dtype));
  for (int i = 0; i < w.ndim; ++i) {
    mix(static_cast<uint64_t>(w.sizes[i]));
    mix(static_cast<uint64_t>(w.strides[i]));
  }
  constexpr int64_t kSamples = 256;
  const int64_t numel = w.numel(), size = size_of(w.dtype);
  const int64_t step = numel / kSamples | 1;  // odd: walks through all columns of an even row length
  const bool contiguous = w.is_contiguous();
  const auto sample = [&](int64_t index) {
    int64_t offset = contiguous ? index : 0;
    for (int d = w.ndim - 1; !contiguous && d >= 0; --d) {
      offset += index % w.sizes[d] * w.strides[d];
      index /= w.sizes[d];
    }
    uint64_t bits = 0;
    std::memcpy(&bits, w.ptr<char>() + offset * size, static_cast<size_t>(size));
    mix(bits);
  };
  for (int64_t i = 0; i < numel; i += step) sample(i);
  if (numel > 0) sample(numel - 1);
  return hash;
}

}  // namespace va
