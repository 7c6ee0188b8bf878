// SPDX-License-Identifier: Apache-2.0
#include "kernels/resample/resample.h"

#include <pybind11/stl.h>

#include <array>
#include <cstring>

#include "bindings/register.h"
#include "bindings/tensor_caster.h"

namespace py = pybind11;

namespace va {
namespace {

using T = const TensorView&;
using Size = std::array<int64_t, 2>;
using Box = std::array<double, 4>;

Resample make(T image, T out, T table, T workspace, int filter, Size size, const Box& box, Size corner,
              bool flip, bool planar, bool vertical_first, int threads) {
  Resample a{image,
             out,
             table,
             workspace,
             static_cast<Filter>(filter),
             size[0],
             size[1],
             {},
             corner[0],
             corner[1],
             flip,
             planar,
             vertical_first,
             threads};
  for (int i = 0; i < 4; ++i) a.box[i] = static_cast<float>(box[i]);
  return a;
}

// The two structures of the Arrow C data interface, arrow.apache.org/docs/format/CDataInterface.html.
struct ArrowSchema {
  const char *format, *name, *metadata;
  int64_t flags, n_children;
  ArrowSchema **children, *dictionary;
  void (*release)(ArrowSchema*);
  void* private_data;
};
struct ArrowArray {
  int64_t length, null_count, offset, n_buffers, n_children;
  const void** buffers;
  ArrowArray **children, *dictionary;
  void (*release)(ArrowArray*);
  void* private_data;
};

// Bytes that an Arrow array of 4-byte pixels holds; keeps the array, and so the image, alive.
struct ArrowPixels {
  py::object array;
  const void* data;
  int64_t bytes;
};

py::memoryview arrow_pixels(const py::object& schema, const py::object& array) {
  const auto* s = static_cast<const ArrowSchema*>(PyCapsule_GetPointer(schema.ptr(), "arrow_schema"));
  if (!s) throw py::error_already_set();
  const auto* a = static_cast<const ArrowArray*>(PyCapsule_GetPointer(array.ptr(), "arrow_array"));
  if (!a) throw py::error_already_set();
  const bool pixels = std::strcmp(s->format, "+w:4") == 0 && s->n_children == 1 &&
                      std::strcmp(s->children[0]->format, "C") == 0 && a->n_children == 1 && a->offset == 0 &&
                      a->children[0]->offset == 0 && a->children[0]->n_buffers == 2;
  if (!pixels)
    throw TypeError("arrow_pixels: expected lists of 4 uint8, got Arrow format " + std::string(s->format));
  return py::memoryview(py::cast(ArrowPixels{array, a->children[0]->buffers[1], a->length * 4}));
}

}  // namespace

void register_resample(py::module_& m) {
  using py::arg;
  m.def(
      "resample_workspace",
      [](T image, T out, T table, int filter, Size size, Box box, Size corner, bool flip, bool planar,
         bool vertical_first, int threads) {
        return resample_workspace(
            make(image, out, table, {}, filter, size, box, corner, flip, planar, vertical_first, threads));
      },
      arg("image"), arg("out"), arg("table"), arg("filter"), arg("size"), arg("box"), arg("corner"),
      arg("flip"), arg("planar"), arg("vertical_first"), arg("threads"));
  m.def(
      "resample",
      [](T image, T out, T table, T workspace, int filter, Size size, Box box, Size corner, bool flip,
         bool planar, bool vertical_first, int threads, Stream stream) {
        resample(make(image, out, table, workspace, filter, size, box, corner, flip, planar, vertical_first,
                      threads),
                 stream);
      },
      arg("image"), arg("out"), arg("table"), arg("workspace"), arg("filter"), arg("size"), arg("box"),
      arg("corner"), arg("flip"), arg("planar"), arg("vertical_first"), arg("threads"), arg("stream"),
      NoGil());

  // Seen from Python only as what a memoryview refers to, so it has no name in the module.
  py::class_<ArrowPixels>(py::handle(), "ArrowPixels", py::buffer_protocol()).def_buffer([](ArrowPixels& p) {
    return py::buffer_info(static_cast<const uint8_t*>(p.data), p.bytes);
  });
  m.def("arrow_pixels", &arrow_pixels, arg("schema"), arg("array"));
}

}  // namespace va
