// SPDX-License-Identifier: Apache-2.0
#include "kernels/activation/activation.h"

#include "bindings/register.h"
#include "bindings/tensor_caster.h"

namespace va {

void register_activation(pybind11::module_& m) {
  using pybind11::arg;
  using T = const TensorView&;
  m.def(
      "activation_forward",
      [](T x, T y, const std::string& kind, Stream stream) {
        activation_forward({x, y, parse_activation(kind, "activation: kind")}, stream);
      },
      arg("x"), arg("y"), arg("kind"), arg("stream"), NoGil());
  m.def(
      "activation_backward",
      [](T dy, T x, T dx, const std::string& kind, Stream stream) {
        activation_backward({dy, x, dx, parse_activation(kind, "activation: kind")}, stream);
      },
      arg("dy"), arg("x"), arg("dx"), arg("kind"), arg("stream"), NoGil());
}

}  // namespace va
