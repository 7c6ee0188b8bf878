// SPDX-License-Identifier: Apache-2.0
// A copy, so it moves words of 2 to 16 bytes and not numbers: the widest that every line of a patch consists
// of.
#include "kernels/patchify/patchify.h"

#include "core/dispatch.h"
#include "kernels/common/vectors.cuh"

namespace va {
namespace {

using namespace simt;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;

template <class W>
VA_DEVICE void copy_word(W* to, const W* from) {
  if constexpr (sizeof(W) == 16) {
    store16(&to->v[0], load16(&from->v[0]));
  } else {
    *to = *from;
  }
}

struct Params {
  void *image, *patches;
  int64_t count;                                                   // of patches, in all images
  int64_t image_stride, channel_stride, line_stride, word_stride;  // in words
  int64_t per_image;                                               // patches
  int columns;                                                     // patches side by side
  int patch_h, line_words;                                         // of one channel of a patch
  int patch_words;
};

// A warp takes a patch; neighbouring lanes write neighbouring words of it.
template <class W, bool kToPatches>
VA_KERNEL(kThreads)
patchify_kernel(Params p) {
  const int64_t step = static_cast<int64_t>(grid_x()) * kWarps;
  for (int64_t i = static_cast<int64_t>(block_x()) * kWarps + warp_index(); i < p.count; i += step) {
    const int64_t b = i / p.per_image;
    const int at = static_cast<int>(i - b * p.per_image), row = at / p.columns, column = at % p.columns;
    W* const image = static_cast<W*>(p.image) + b * p.image_stride +
                     static_cast<int64_t>(row) * p.patch_h * p.line_stride +
                     static_cast<int64_t>(column) * p.line_words * p.word_stride;
    W* const patch = static_cast<W*>(p.patches) + i * p.patch_words;
    for (int w = lane_index(); w < p.patch_words; w += kWarp) {
      const int line = w / p.line_words, x = w - line * p.line_words;
      const int c = line / p.patch_h, y = line - c * p.patch_h;
      W* const pixel = image + c * p.channel_stride + y * p.line_stride + x * p.word_stride;
      if constexpr (kToPatches) {
        copy_word(patch + w, pixel);
      } else {
        copy_word(pixel, patch + w);
      }
    }
  }
}

// The widest word with which all lines start at a multiple of its size.
int word_bytes(const Patchify& a) {
  const int64_t element = size_of(a.x.dtype);
  if (a.x.strides[3] != 1 && a.x.sizes[3] > 1) return static_cast<int>(element);
  int64_t all =
      reinterpret_cast<int64_t>(a.x.data) | reinterpret_cast<int64_t>(a.patches.data) | a.patch_w * element;
  for (int i = 0; i < 3; ++i) {
    if (a.x.sizes[i] > 1) all |= a.x.strides[i] * element;
  }
  int bytes = 16;
  while (all % bytes != 0) bytes /= 2;
  return bytes;
}

template <bool kToPatches>
void run(const Patchify& a, Stream stream) {
  const int bytes = word_bytes(a);
  const int64_t *size = a.x.sizes, *stride = a.x.strides, element = size_of(a.x.dtype);
  const auto words = [&](int64_t elements) { return elements * element / bytes; };
  const int64_t rows = size[2] / a.patch_h, columns = size[3] / a.patch_w;
  const int64_t patch_words = words(size[1] * a.patch_h * a.patch_w);
  check(patch_words < (int64_t{1} << 31) && rows * columns < (int64_t{1} << 31),
        "patchify: x is too large for the GPU kernel: a patch and the patches of an image must count less "
        "than 2^31");
  const Params p{a.x.data,
                 a.patches.data,
                 size[0] * rows * columns,
                 words(stride[0]),
                 words(stride[1]),
                 words(stride[2]),
                 bytes == element ? (size[3] > 1 ? stride[3] : 1) : 1,
                 rows * columns,
                 static_cast<int>(columns),
                 static_cast<int>(a.patch_h),
                 static_cast<int>(words(a.patch_w)),
                 static_cast<int>(patch_words)};
  const auto go = [&](auto word) {
    launch("patchify", patchify_kernel<decltype(word), kToPatches>, {blocks_for(p.count, kWarps)}, kThreads,
           0, stream, p);
  };
  if (bytes == 16) return go(Pack<uint32_t>{});
  if (bytes == 8) return go(uint64_t{});
  if (bytes == 4) return go(uint32_t{});
  go(uint16_t{});
}

}  // namespace

void cuda::patchify(const Patchify& a, Stream stream) { run<true>(a, stream); }
void cuda::unpatchify(const Patchify& a, Stream stream) { run<false>(a, stream); }

}  // namespace va
