// SPDX-License-Identifier: Apache-2.0
#include "kernels/resample/resample.h"

#include <pybind11/stl.h>

#include <array>

#include "bindings/register.h"
#include "bindings/tensor_caster.h"

namespace va {
namespace {

using T = const TensorView&;

Resample make(T image, T out, T table, T workspace, int filter, std::array<int64_t, 2> size,
              const std::array<double, 4>& box, std::array<int64_t, 2> corner, bool flip, bool planar,
              bool vertical_first, int threads) {
  Resample a{image, out, table, workspace, static_cast<Filter>(filter), size[0], size[1], {}, corner[0], corner[1],
             flip, planar, vertical_first, threads};
  for (int i = 0; i < 4; ++i) a.box[i] = static_cast<float>(box[i]);
  return a;
}

}  // namespace

void register_resample(pybind11::module_& m) {
  using pybind11::arg;
  m.def("resample_workspace", [](T image, T out, T table, int filter, std::array<int64_t, 2> size,
                                 std::array<double, 4> box, std::array<int64_t, 2> corner, bool flip, bool planar,
                                 bool vertical_first, int threads) {
    return resample_workspace(make(image, out, table, {}, filter, size, box, corner, flip, planar, vertical_first, threads));
  }, arg("image"), arg("out"), arg("table"), arg("filter"), arg("size"), arg("box"), arg("corner"), arg("flip"),
     arg("planar"), arg("vertical_first"), arg("threads"));
  m.def("resample", [](T image, T out, T table, T workspace, int filter, std::array<int64_t, 2> size,
                       std::array<double, 4> box, std::array<int64_t, 2> corner, bool flip, bool planar,
                       bool vertical_first, int threads) {
    resample(make(image, out, table, workspace, filter, size, box, corner, flip, planar, vertical_first, threads));
  }, arg("image"), arg("out"), arg("table"), arg("workspace"), arg("filter"), arg("size"), arg("box"), arg("corner"),
     arg("flip"), arg("planar"), arg("vertical_first"), arg("threads"), NoGil());
}

}  // namespace va
