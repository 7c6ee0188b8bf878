// SPDX-License-Identifier: Apache-2.0
#include "kernels/patchify/patchify.h"

#include "core/dispatch.h"

namespace va {
namespace {

void check_arguments(const Patchify& a) {
  const auto [B, C, h, w] = a.x.shape<4>("patchify: x");
  check_dtype(a.x, "patchify: x", {DType::f32, DType::f64, DType::f16, DType::bf16});
  check(a.patch_h > 0 && a.patch_w > 0, "patchify: patch_size must be positive");
  if (h % a.patch_h != 0 || w % a.patch_w != 0) {
    fail("patchify: x must have a height and width divisible by the patch size " + std::to_string(a.patch_h) +
         " x " + std::to_string(a.patch_w) + ", got " + std::to_string(h) + " x " + std::to_string(w));
  }
  check_shape(a.patches, "patchify: patches",
              {B, (h / a.patch_h) * (w / a.patch_w), C * a.patch_h * a.patch_w});
  check_like(a.patches, "patchify: patches", a.x);
  check_contiguous(a.patches, "patchify: patches");
}

}  // namespace

void patchify(const Patchify& a, Stream stream) {
  check_arguments(a);
  if (a.x.numel() == 0) return;
  dispatch_device(
      a.x.device, "patchify", [&](auto isa) { cpu::patchify<isa()>(a); }, [&] { cuda::patchify(a, stream); });
}

void unpatchify(const Patchify& a, Stream stream) {
  check_arguments(a);
  if (a.x.numel() == 0) return;
  dispatch_device(
      a.x.device, "patchify", [&](auto isa) { cpu::unpatchify<isa()>(a); },
      [&] { cuda::unpatchify(a, stream); });
}

}  // namespace va
