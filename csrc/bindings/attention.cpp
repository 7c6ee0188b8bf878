// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention.h"

#include "bindings/register.h"
#include "bindings/tensor_caster.h"

namespace va {

void register_attention(pybind11::module_& m) {
  using pybind11::arg;
  using T = const TensorView&;
  m.def("attention_workspace", &attention_workspace, arg("q"), arg("k"), arg("backward"));
  m.def(
      "attention_forward",
      [](T q, T k, T v, T key_padding, T y, T lse, T workspace, bool causal, double scale, bool tf32,
         Stream stream) {
        attention_forward({q, k, v, key_padding, y, lse, causal, scale, workspace, tf32}, stream);
      },
      arg("q"), arg("k"), arg("v"), arg("key_padding"), arg("y"), arg("lse"), arg("workspace"), arg("causal"),
      arg("scale"), arg("tf32"), arg("stream"), NoGil());
  m.def(
      "attention_backward",
      [](T q, T k, T v, T key_padding, T y, T lse, T delta, T dy, T dq, T dk, T dv, T workspace, bool causal,
         double scale, bool tf32, Stream stream) {
        attention_backward(
            {q, k, v, key_padding, y, lse, delta, dy, dq, dk, dv, causal, scale, workspace, tf32}, stream);
      },
      arg("q"), arg("k"), arg("v"), arg("key_padding"), arg("y"), arg("lse"), arg("delta"), arg("dy"),
      arg("dq"), arg("dk"), arg("dv"), arg("workspace"), arg("causal"), arg("scale"), arg("tf32"),
      arg("stream"), NoGil());
}

}  // namespace va
