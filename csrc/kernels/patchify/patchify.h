// SPDX-License-Identifier: Apache-2.0
// Cuts images into patches: patches[b, i * (w / pw) + j, (c, py, px)] = x[b, c, i ph + py, j pw + px], the
// order of a flattened convolution weight [out, C, ph, pw]. Dosovitskiy et al. 2020, arXiv:2010.11929,
// section 3.1.
#pragma once
#include "core/cpu_features.h"
#include "core/tensor_view.h"

namespace va {

struct Patchify {
  TensorView x;        // [B, C, h, w]  f32 | f64 | f16 | bf16; any strides
  TensorView patches;  // [B, (h / patch_h) (w / patch_w), C patch_h patch_w]  as x, contiguous
  int64_t patch_h;
  int64_t patch_w;
};

void patchify(const Patchify& args, Stream stream);    // x -> patches
void unpatchify(const Patchify& args, Stream stream);  // patches -> x

namespace cpu {
template <Isa isa>
void patchify(const Patchify& args);
template <Isa isa>
void unpatchify(const Patchify& args);
}  // namespace cpu

namespace cuda {
void patchify(const Patchify& args, Stream stream);
void unpatchify(const Patchify& args, Stream stream);
}  // namespace cuda

}  // namespace va
