// SPDX-License-Identifier: Apache-2.0
#include "kernels/block_float/block_float.h"

#include <pybind11/stl.h>

#include "bindings/register.h"
#include "bindings/tensor_caster.h"

namespace va {

void register_block_float(pybind11::module_& m) {
  using pybind11::arg;
  using T = const TensorView&;
  using Offsets = const std::vector<int64_t>&;
  m.def(
      "block_float_bytes",
      [](int64_t width, int64_t channels) { return block_float_row(width, channels).bytes; }, arg("width"),
      arg("channels"));
  m.def(
      "pack_block_float",
      [](T x, T store, Offsets offsets, Stream stream) { pack_block_float({x, store, offsets}, stream); },
      arg("x"), arg("store"), arg("offsets"), arg("stream"), NoGil());
  m.def(
      "unpack_block_float",
      [](T store, Offsets offsets, T out, Stream stream) {
        unpack_block_float({out, store, offsets}, stream);
      },
      arg("store"), arg("offsets"), arg("out"), arg("stream"), NoGil());
}

}  // namespace va
