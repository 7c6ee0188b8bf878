// SPDX-License-Identifier: Apache-2.0
#include "kernels/contrastive_loss/contrastive_loss.h"

#include "bindings/register.h"
#include "bindings/tensor_caster.h"

namespace va {

void register_contrastive_loss(pybind11::module_& m) {
  using pybind11::arg;
  using T = const TensorView&;
  m.def("contrastive_loss_workspace", &contrastive_loss_workspace, arg("images"), arg("texts"));
  m.def(
      "contrastive_loss_forward",
      [](T image, T text, T scale, T bias, T rows, T own, T top, T columns, T workspace, int64_t first,
         Stream stream) {
        contrastive_loss_forward(
            {image, text, scale.flat("contrastive_loss: scale"), bias.flat("contrastive_loss: bias"), rows,
             own, top, columns, workspace, first},
            stream);
      },
      arg("image"), arg("text"), arg("scale"), arg("bias"), arg("rows"), arg("own"), arg("top"),
      arg("columns"), arg("workspace"), arg("first"), arg("stream"), NoGil());
  m.def(
      "contrastive_loss_backward",
      [](T drows, T down, T dcolumns, T image, T text, T scale, T bias, T rows, T own, T top, T columns,
         T dimage, T dtext, T dscale, T dbias, T workspace, int64_t first, Stream stream) {
        contrastive_loss_backward({drows, down, dcolumns, image, text, scale.flat("contrastive_loss: scale"),
                                   bias.flat("contrastive_loss: bias"), rows, own, top, columns, dimage,
                                   dtext, dscale.flat("contrastive_loss: dscale"),
                                   dbias.flat("contrastive_loss: dbias"), workspace, first},
                                  stream);
      },
      arg("drows"), arg("down"), arg("dcolumns"), arg("image"), arg("text"), arg("scale"), arg("bias"),
      arg("rows"), arg("own"), arg("top"), arg("columns"), arg("dimage"), arg("dtext"), arg("dscale"),
      arg("dbias"), arg("workspace"), arg("first"), arg("stream"), NoGil());
}

}  // namespace va
