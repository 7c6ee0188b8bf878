// SPDX-License-Identifier: Apache-2.0
#include "kernels/adamw/adamw.h"

#include "bindings/register.h"
#include "bindings/tensor_caster.h"

namespace va {

void register_adamw(pybind11::module_& m) {
  using pybind11::arg;
  using List = const std::vector<TensorView>&;
  m.def(
      "adamw",
      [](List params, List grads, List exp_avgs, List exp_avg_sqs, int64_t step,
         const TensorView& step_tensor, double lr, double beta1, double beta2, double eps,
         double weight_decay, double grad_scale, Stream stream) {
        adamw({params, grads, exp_avgs, exp_avg_sqs, step, lr, beta1, beta2, eps, weight_decay, grad_scale,
               step_tensor},
              stream);
      },
      arg("params"), arg("grads"), arg("exp_avgs"), arg("exp_avg_sqs"), arg("step"), arg("step_tensor"),
      arg("lr"), arg("beta1"), arg("beta2"), arg("eps"), arg("weight_decay"), arg("grad_scale"),
      arg("stream"), NoGil());
  m.def(
      "grad_norm",
      [](List grads, const TensorView& norm, const TensorView& workspace, Stream stream) {
        grad_norm({grads, norm, workspace}, stream);
      },
      arg("grads"), arg("norm"), arg("workspace"), arg("stream"), NoGil());
  m.attr("GRAD_NORM_BLOCKS") = kGradNormBlocks;
}

}  // namespace va
