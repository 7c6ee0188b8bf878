// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <pybind11/pybind11.h>

namespace va {

using NoGil = pybind11::call_guard<pybind11::gil_scoped_release>;

void register_runtime(pybind11::module_& m);
void register_activation(pybind11::module_& m);
void register_adamw(pybind11::module_& m);
void register_attention(pybind11::module_& m);
void register_block_float(pybind11::module_& m);
void register_contrastive_loss(pybind11::module_& m);
void register_conv2d(pybind11::module_& m);
void register_cross_entropy(pybind11::module_& m);
void register_group_norm(pybind11::module_& m);
void register_layer_norm(pybind11::module_& m);
void register_linear(pybind11::module_& m);
void register_patchify(pybind11::module_& m);
void register_resample(pybind11::module_& m);

}  // namespace va
