// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear/linear.h"

#include "bindings/register.h"
#include "bindings/tensor_caster.h"

namespace va {

void register_linear(pybind11::module_& m) {
  using pybind11::arg;
  using T = const TensorView&;
  m.def(
      "linear_workspace",
      [](T dy, T like, int64_t k, bool sums, bool dweight) {
        const TensorView rows = dy.as_rows("linear: dy");
        return linear_workspace(dy.device, like.dtype, rows.sizes[0], rows.sizes[1], k, sums, dweight);
      },
      arg("dy"), arg("like"), arg("k"), arg("sums"), arg("dweight"));
  m.def(
      "linear_forward",
      [](T x, T weight, T packed, T bias, T residual, T scale, T y, T z, const std::string& activation,
         int64_t first, bool tf32, bool deterministic, Stream stream) {
        linear_forward({x.as_rows("linear: x"), weight, packed, bias, residual.as_rows("linear: residual"),
                        scale, y.as_rows("linear: y"), z.as_rows("linear: z"),
                        parse_activation(activation, "linear: activation"), first, tf32, deterministic},
                       stream);
      },
      arg("x"), arg("weight"), arg("packed"), arg("bias"), arg("residual"), arg("scale"), arg("y"), arg("z"),
      arg("activation"), arg("first"), arg("tf32"), arg("deterministic"), arg("stream"), NoGil());
  m.def(
      "linear_backward",
      [](T dy, T x, T weight, T z, T scale, T input, T dz, T dx, T dweight, T dbias, T dscale, T workspace,
         const std::string& activation, const std::string& input_activation, bool tf32, bool deterministic,
         Stream stream) {
        linear_backward(
            {dy.as_rows("linear: dy"), x.as_rows("linear: x"), weight, z.as_rows("linear: z"), scale,
             input.as_rows("linear: input"), dz.as_rows("linear: dz"), dx.as_rows("linear: dx"), dweight,
             dbias, dscale, workspace, parse_activation(activation, "linear: activation"),
             parse_activation(input_activation, "linear: activation"), tf32, deterministic},
            stream);
      },
      arg("dy"), arg("x"), arg("weight"), arg("z"), arg("scale"), arg("input"), arg("dz"), arg("dx"),
      arg("dweight"), arg("dbias"), arg("dscale"), arg("workspace"), arg("activation"),
      arg("input_activation"), arg("tf32"), arg("deterministic"), arg("stream"), NoGil());
  m.def("linear_force_tile", &linear_force_tile, arg("name"));
  m.def("linear_packed_numel", &linear_packed_numel, arg("weight"));
  m.def("linear_pack", &linear_pack, arg("weight"), arg("packed"), NoGil());
  m.def("linear_fingerprint", &linear_fingerprint, arg("weight"));
}

}  // namespace va
