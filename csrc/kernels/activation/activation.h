// SPDX-License-Identifier: Apache-2.0
// y = f(x) elementwise; the kinds are in kernels/common/activation.h.
#pragma once
#include "core/cpu_features.h"
#include "core/tensor_view.h"
#include "kernels/common/activation.h"

namespace va {

// All tensors share x's shape and strides; any order of axes, no holes.
struct ActivationForward {
  TensorView x;  // f32 | f64 | f16 | bf16
  TensorView y;  // out
  Activation kind;
};

struct ActivationBackward {
  TensorView dy;
  TensorView x;
  TensorView dx;  // out, dy f'(x)
  Activation kind;
};

void activation_forward(const ActivationForward& args, Stream stream);
void activation_backward(const ActivationBackward& args, Stream stream);

namespace cpu {
template <Isa isa>
void activation_forward(const ActivationForward& args);
template <Isa isa>
void activation_backward(const ActivationBackward& args);
}  // namespace cpu

namespace cuda {
void activation_forward(const ActivationForward& args, Stream stream);
void activation_backward(const ActivationBackward& args, Stream stream);
}  // namespace cuda

}  // namespace va
