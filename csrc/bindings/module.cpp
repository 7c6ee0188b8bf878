// SPDX-License-Identifier: Apache-2.0
// The table of contents of vision_accel._C.
#include <pybind11/pybind11.h>

#include "bindings/register.h"
#include "bindings/tensor_caster.h"

PYBIND11_MODULE(_C, m) {
  va::register_errors();
  va::register_runtime(m);
  va::register_activation(m);
  va::register_adamw(m);
  va::register_attention(m);
  va::register_block_float(m);
  va::register_contrastive_loss(m);
  va::register_conv2d(m);
  va::register_cross_entropy(m);
  va::register_group_norm(m);
  va::register_layer_norm(m);
  va::register_linear(m);
  va::register_patchify(m);
  va::register_resample(m);
}
