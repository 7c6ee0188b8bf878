// SPDX-License-Identifier: Apache-2.0
#include "kernels/patchify/patchify.h"

#include "bindings/register.h"
#include "bindings/tensor_caster.h"

namespace va {

void register_patchify(pybind11::module_& m) {
  using pybind11::arg;
  using T = const TensorView&;
  m.def(
      "patchify",
      [](T x, T patches, int64_t patch_h, int64_t patch_w, Stream stream) {
        patchify({x, patches, patch_h, patch_w}, stream);
      },
      arg("x"), arg("patches"), arg("patch_h"), arg("patch_w"), arg("stream"), NoGil());
  m.def(
      "unpatchify",
      [](T patches, T x, int64_t patch_h, int64_t patch_w, Stream stream) {
        unpatchify({x, patches, patch_h, patch_w}, stream);
      },
      arg("patches"), arg("x"), arg("patch_h"), arg("patch_w"), arg("stream"), NoGil());
}

}  // namespace va
