// SPDX-License-Identifier: Apache-2.0
#include "kernels/contrastive_loss/contrastive_loss.h"

#include "core/dispatch.h"

namespace va {
namespace {

// What forward and backward have in common; `softmax` is decided by the absence of a bias.
template <class Args>
void check_inputs(const Args& a) {
  const auto [images, width] = a.image.template shape<2>("contrastive_loss: image");
  check_dtype(a.image, "contrastive_loss: image", {DType::f32, DType::f64});
  const int64_t texts = a.text.template shape<2>("contrastive_loss: text")[0];
  check_shape(a.text, "contrastive_loss: text", {texts, width});
  check_like(a.text, "contrastive_loss: text", a.image);
  for (const TensorView& x : {a.image, a.text})
    check(width <= 1 || x.strides[1] == 1, "contrastive_loss: the last axis must be contiguous");
  const bool softmax = !a.bias.defined();
  if ((a.first < 0 && softmax) || (a.first >= 0 && a.first > texts - images)) {
    fail("contrastive_loss: text must hold the " + std::to_string(images) + " texts of image from row " +
         std::to_string(a.first) + " on, got " + shape_string(a.text));
  }
}

void check_vector(const TensorView& x, const char* what, int64_t n, const TensorView& image) {
  check_shape(x, what, {n});
  check_like(x, what, image);
  check_contiguous(x, what);
}

template <class Args>
void check_statistics(const Args& a) {
  const int64_t images = a.image.sizes[0], texts = a.text.sizes[0];
  check_vector(a.scale, "contrastive_loss: scale", 1, a.image);
  check_vector(a.rows, "contrastive_loss: rows", images, a.image);
  check_vector(a.workspace, "contrastive_loss: workspace", contrastive_loss_workspace(images, texts),
               a.image);
  if (a.bias.defined()) return check_vector(a.bias, "contrastive_loss: bias", 1, a.image);
  check_vector(a.own, "contrastive_loss: own", images, a.image);
  check_vector(a.top, "contrastive_loss: top", texts, a.image);
  check_vector(a.columns, "contrastive_loss: columns", texts, a.image);
}

}  // namespace

int64_t contrastive_loss_workspace(int64_t images, int64_t texts) {
  const int64_t rows = images < kContrastiveRows ? images : kContrastiveRows;
  return rows * contrastive_row_stride(texts) + 2 * images;
}

void contrastive_loss_forward(const ContrastiveForward& a, Stream stream) {
  check_inputs(a);
  check_statistics(a);
  dispatch_device(
      a.image.device, "contrastive_loss", [&](auto isa) { cpu::contrastive_loss_forward<isa()>(a); },
      [&] { cuda::contrastive_loss_forward(a, stream); });
}

void contrastive_loss_backward(const ContrastiveBackward& a, Stream stream) {
  check_inputs(a);
  check_statistics(a);
  const int64_t images = a.image.sizes[0], texts = a.text.sizes[0], width = a.image.sizes[1];
  check_vector(a.drows, "contrastive_loss: drows", images, a.image);
  check_shape(a.dimage, "contrastive_loss: dimage", {images, width});
  check_shape(a.dtext, "contrastive_loss: dtext", {texts, width});
  for (const TensorView& x : {a.dimage, a.dtext}) {
    check_like(x, "contrastive_loss: a gradient", a.image);
    check_contiguous(x, "contrastive_loss: a gradient");
  }
  check_vector(a.dscale, "contrastive_loss: dscale", 1, a.image);
  if (a.bias.defined()) {
    check_vector(a.dbias, "contrastive_loss: dbias", 1, a.image);
  } else {
    check_vector(a.down, "contrastive_loss: down", images, a.image);
    check_vector(a.dcolumns, "contrastive_loss: dcolumns", texts, a.image);
  }
  dispatch_device(
      a.image.device, "contrastive_loss", [&](auto isa) { cpu::contrastive_loss_backward<isa()>(a); },
      [&] { cuda::contrastive_loss_backward(a, stream); });
}

}  // namespace va
