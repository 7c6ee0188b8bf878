// SPDX-License-Identifier: Apache-2.0
#include "kernels/group_norm/group_norm.h"

#include "bindings/register.h"
#include "bindings/tensor_caster.h"

namespace va {

void register_group_norm(pybind11::module_& m) {
  using pybind11::arg;
  using T = const TensorView&;
  m.def("group_norm_parts", &group_norm_parts, arg("pixels"), arg("channels"));
  m.def(
      "group_norm_statistics",
      [](T x, T mean, T variance, T workspace, Stream stream) {
        group_norm_statistics({x, mean, variance, workspace}, stream);
      },
      arg("x"), arg("mean"), arg("variance"), arg("workspace"), arg("stream"), NoGil());
  m.def(
      "group_norm_forward",
      [](T x, T mean, T variance, T weight, T bias, T y, const std::string& activation, double eps,
         Stream stream) {
        group_norm_forward(
            {x, mean, variance, weight, bias, y, parse_activation(activation, "group_norm: activation"), eps},
            stream);
      },
      arg("x"), arg("mean"), arg("variance"), arg("weight"), arg("bias"), arg("y"), arg("activation"),
      arg("eps"), arg("stream"), NoGil());
  m.def(
      "group_norm_backward",
      [](T dy, T x, T mean, T variance, T weight, T bias, T dx, T dweight, T dbias, T workspace,
         const std::string& activation, double eps, Stream stream) {
        group_norm_backward({dy, x, mean, variance, weight, bias, dx, dweight, dbias, workspace,
                             parse_activation(activation, "group_norm: activation"), eps},
                            stream);
      },
      arg("dy"), arg("x"), arg("mean"), arg("variance"), arg("weight"), arg("bias"), arg("dx"),
      arg("dweight"), arg("dbias"), arg("workspace"), arg("activation"), arg("eps"), arg("stream"), NoGil());
}

}  // namespace va
