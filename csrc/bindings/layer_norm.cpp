// SPDX-License-Identifier: Apache-2.0
#include "kernels/layer_norm/layer_norm.h"

#include "bindings/register.h"
#include "bindings/tensor_caster.h"

namespace va {

void register_layer_norm(pybind11::module_& m) {
  using pybind11::arg;
  using T = const TensorView&;
  m.def(
      "layer_norm_parts", [](T x, int64_t rows) { return layer_norm_parts(x.device, rows); }, arg("x"),
      arg("rows"));
  m.def(
      "layer_norm_forward",
      [](T x, T residual, T weight, T bias, T y, T sum, T mean, T rstd, double eps, Stream stream) {
        layer_norm_forward({x.as_rows("layer_norm: x"), residual.as_rows("layer_norm: residual"), weight,
                            bias, y.as_rows("layer_norm: y"), sum.as_rows("layer_norm: sum"),
                            mean.flat("layer_norm: mean"), rstd.flat("layer_norm: rstd"), eps},
                           stream);
      },
      arg("x"), arg("residual"), arg("weight"), arg("bias"), arg("y"), arg("sum"), arg("mean"), arg("rstd"),
      arg("eps"), arg("stream"), NoGil());
  m.def(
      "layer_norm_backward",
      [](T dy, T s, T weight, T mean, T rstd, T dsum, T dx, T dweight, T dbias, T workspace, Stream stream) {
        layer_norm_backward(
            {dy.as_rows("layer_norm: dy"), s.as_rows("layer_norm: s"), weight, mean.flat("layer_norm: mean"),
             rstd.flat("layer_norm: rstd"), dsum.as_rows("layer_norm: dsum"), dx.as_rows("layer_norm: dx"),
             dweight, dbias, workspace},
            stream);
      },
      arg("dy"), arg("s"), arg("weight"), arg("mean"), arg("rstd"), arg("dsum"), arg("dx"), arg("dweight"),
      arg("dbias"), arg("workspace"), arg("stream"), NoGil());
}

}  // namespace va
