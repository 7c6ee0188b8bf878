// SPDX-License-Identifier: Apache-2.0
#include "kernels/patchify/patchify.h"

#include "core/dispatch.h"
#include "core/parallel.h"
#include "kernels/common/simd.h"

namespace va {
namespace VA_ISA {
namespace {

constexpr int64_t kGrainElements = 32768;

// One line of a patch: patch_w pixels of one channel, `stride` elements apart in the image.
template <class T>
void copy_line(T* image, int64_t stride, T* patch, int64_t count, bool to_patch) {
  if (stride == 1) {
    std::memcpy(to_patch ? patch : image, to_patch ? image : patch, static_cast<size_t>(count) * sizeof(T));
  } else if (to_patch) {
    for (int64_t i = 0; i < count; ++i) patch[i] = image[i * stride];
  } else {
    for (int64_t i = 0; i < count; ++i) image[i * stride] = patch[i];
  }
}

template <class T>
void run(const Patchify& a, bool to_patches) {
  const int64_t* size = a.x.sizes;
  const int64_t* stride = a.x.strides;
  const int64_t C = size[1], rows = size[2] / a.patch_h, columns = size[3] / a.patch_w;
  const int64_t patch_elements = C * a.patch_h * a.patch_w;
  parallel_for(size[0] * rows, kGrainElements / (columns * patch_elements) + 1,
               [&](int64_t begin, int64_t end) {
                 T* patch = a.patches.ptr<T>() + begin * columns * patch_elements;
                 for (int64_t i = begin; i < end; ++i) {
                   T* const row = a.x.ptr<T>() + i / rows * stride[0] + i % rows * a.patch_h * stride[2];
                   for (int64_t j = 0; j < columns; ++j) {
                     for (int64_t c = 0; c < C; ++c) {
                       for (int64_t y = 0; y < a.patch_h; ++y, patch += a.patch_w) {
                         T* const line = row + c * stride[1] + y * stride[2] + j * a.patch_w * stride[3];
                         copy_line(line, stride[3], patch, a.patch_w, to_patches);
                       }
                     }
                   }
                 }
               });
}

void run(const Patchify& a, bool to_patches) {
  dispatch_float(a.x.dtype, "patchify: x", [&](auto t) { run<typename decltype(t)::type>(a, to_patches); });
}

}  // namespace
}  // namespace VA_ISA

namespace cpu {

template <>
void patchify<kIsa>(const Patchify& a) {
  VA_ISA::run(a, true);
}

template <>
void unpatchify<kIsa>(const Patchify& a) {
  VA_ISA::run(a, false);
}

}  // namespace cpu
}  // namespace va
