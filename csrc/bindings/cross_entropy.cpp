// SPDX-License-Identifier: Apache-2.0
#include "kernels/cross_entropy/cross_entropy.h"

#include <string>

#include "bindings/register.h"
#include "bindings/tensor_caster.h"

namespace va {
namespace {

Reduction parse_reduction(const std::string& name) {
  if (name == "none") return Reduction::none;
  if (name == "mean") return Reduction::mean;
  if (name == "sum") return Reduction::sum;
  fail("cross_entropy: reduction must be none, mean or sum, got '" + name + "'");
}

// Class indices have one axis less than the logits, probabilities as many.
TensorView target_rows(const TensorView& target) {
  const char* what = "cross_entropy: target";
  return target.dtype == DType::i64 ? target.flat(what) : target.as_rows(what);
}

}  // namespace

void register_cross_entropy(pybind11::module_& m) {
  using pybind11::arg;
  using T = const TensorView&;
  m.def(
      "cross_entropy_forward",
      [](T logits, T target, T loss, T losses, T lse, double label_smoothing, const std::string& reduction,
         int64_t ignore_index, Stream stream) {
        cross_entropy_forward(
            {logits.as_rows("cross_entropy: logits"), target_rows(target), loss.flat("cross_entropy: loss"),
             losses.flat("cross_entropy: losses"), lse.flat("cross_entropy: lse"), label_smoothing,
             parse_reduction(reduction), ignore_index},
            stream);
      },
      arg("logits"), arg("target"), arg("loss"), arg("losses"), arg("lse"), arg("label_smoothing"),
      arg("reduction"), arg("ignore_index"), arg("stream"), NoGil());
  m.def(
      "cross_entropy_backward",
      [](T dloss, T logits, T target, T lse, T dlogits, T dtarget, T scale, double label_smoothing,
         const std::string& reduction, int64_t ignore_index, Stream stream) {
        cross_entropy_backward(
            {dloss.flat("cross_entropy: dloss"), logits.as_rows("cross_entropy: logits"), target_rows(target),
             lse.flat("cross_entropy: lse"), dlogits.as_rows("cross_entropy: dlogits"),
             dtarget.as_rows("cross_entropy: dtarget"), scale.flat("cross_entropy: scale"), label_smoothing,
             parse_reduction(reduction), ignore_index},
            stream);
      },
      arg("dloss"), arg("logits"), arg("target"), arg("lse"), arg("dlogits"), arg("dtarget"), arg("scale"),
      arg("label_smoothing"), arg("reduction"), arg("ignore_index"), arg("stream"), NoGil());
}

}  // namespace va
