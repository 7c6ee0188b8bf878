// SPDX-License-Identifier: Apache-2.0
#include "kernels/conv2d/conv2d.h"

#include <pybind11/stl.h>

#include <array>

#include "bindings/register.h"
#include "bindings/tensor_caster.h"

namespace va {

void register_conv2d(pybind11::module_& m) {
  using pybind11::arg;
  using T = const TensorView&;
  using Sizes = const std::array<int64_t, 2>&;
  m.def(
      "conv2d_forward",
      [](T x, T weight, T packed, T bias, T residual, T y, const std::string& activation, Sizes kernel,
         int64_t stride, Sizes padding, Stream stream, bool tf32) {
        conv2d_forward({x,
                        weight,
                        packed,
                        bias,
                        residual,
                        y,
                        parse_activation(activation, "conv2d: activation"),
                        {kernel[0], kernel[1], stride, padding[0], padding[1]},
                        tf32},
                       stream);
      },
      arg("x"), arg("weight"), arg("packed"), arg("bias"), arg("residual"), arg("y"), arg("activation"),
      arg("kernel"), arg("stride"), arg("padding"), arg("stream"), arg("tf32") = false, NoGil());
  m.def(
      "conv2d_workspace",
      [](T dy, int64_t k) {
        const auto [batch, v, u, n] = dy.shape<4>("conv2d: dy");
        return conv2d_workspace(dy.device, batch * v * u, n, k);
      },
      arg("dy"), arg("k"));
  m.def(
      "conv2d_winograd",
      [](T x, T packed, T bias, T residual, T y, const std::string& activation, Sizes padding,
         bool upsample) {
        conv2d_winograd({x, packed, bias, residual, y, parse_activation(activation, "conv2d: activation"),
                         padding[0], padding[1], upsample});
      },
      arg("x"), arg("packed"), arg("bias"), arg("residual"), arg("y"), arg("activation"), arg("padding"),
      arg("upsample"), NoGil());
  m.def(
      "conv2d_winograd_pack",
      [](T weight, T packed, bool mirrored, bool upsample) {
        conv2d_winograd_pack({weight, packed, mirrored, upsample});
      },
      arg("weight"), arg("packed"), arg("mirrored"), arg("upsample"), NoGil());
  m.def(
      "conv2d_winograd_weight",
      [](T dy, T x, T dweight, T dbias, T workspace, Sizes padding, bool upsample) {
        conv2d_winograd_weight({dy, x, dweight, dbias, workspace, padding[0], padding[1], upsample});
      },
      arg("dy"), arg("x"), arg("dweight"), arg("dbias"), arg("workspace"), arg("padding"), arg("upsample"),
      NoGil());
  m.def("conv2d_winograd_workspace", &conv2d_winograd_workspace, arg("dy"), arg("channels"), arg("upsample"));
  m.def(
      "conv2d_backward_weight",
      [](T dy, T x, T dweight, T workspace, Sizes kernel, int64_t stride, Sizes padding, Stream stream) {
        conv2d_backward_weight(
            {dy, x, dweight, workspace, {kernel[0], kernel[1], stride, padding[0], padding[1]}}, stream);
      },
      arg("dy"), arg("x"), arg("dweight"), arg("workspace"), arg("kernel"), arg("stride"), arg("padding"),
      arg("stream"), NoGil());
}

}  // namespace va
