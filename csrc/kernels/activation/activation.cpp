// SPDX-License-Identifier: Apache-2.0
#include "kernels/activation/activation.h"

#include "core/dispatch.h"

namespace va {

void activation_forward(const ActivationForward& a, Stream stream) {
  check_dtype(a.x, "activation: x", {DType::f32, DType::f64, DType::f16, DType::bf16});
  check_dense(a.x, "activation: x");
  check_same_layout(a.y, "activation: y", a.x);
  check_like(a.y, "activation: y", a.x);
  if (a.x.numel() == 0) return;
  dispatch_device(
      a.x.device, "activation", [&](auto isa) { cpu::activation_forward<isa()>(a); },
      [&] { cuda::activation_forward(a, stream); });
}

void activation_backward(const ActivationBackward& a, Stream stream) {
  check_dtype(a.x, "activation: x", {DType::f32, DType::f64, DType::f16, DType::bf16});
  check_dense(a.x, "activation: x");
  check_same_layout(a.dy, "activation: dy", a.x);
  check_like(a.dy, "activation: dy", a.x);
  check_same_layout(a.dx, "activation: dx", a.x);
  check_like(a.dx, "activation: dx", a.x);
  if (a.x.numel() == 0) return;
  dispatch_device(
      a.x.device, "activation", [&](auto isa) { cpu::activation_backward<isa()>(a); },
      [&] { cuda::activation_backward(a, stream); });
}

}  // namespace va
