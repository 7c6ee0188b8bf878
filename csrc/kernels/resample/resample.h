// SPDX-License-Identifier: Apache-2.0
// Separable, antialiased image resizing that is bit-exact with Pillow's Image.resize on 8-bit images,
// followed by a crop, an optional mirror and a per-channel table lookup (normalisation), in one pass over the
// image.
//
// Pillow's arithmetic: filter weights are computed in double, normalised to sum 1 and rounded to 22
// fractional bits; each of the two passes rounds to uint8. Only rows and columns that the crop keeps are
// computed. Results do not depend on the instruction set or on the number of threads.
#pragma once
#include "core/cpu_features.h"
#include "core/tensor_view.h"

namespace va {

enum class Filter { nearest, lanczos, bilinear, bicubic, box, hamming };  // numbered as in Pillow

struct Resample {
  TensorView image;  // [h, w, C]  uint8, C <= 4; channels adjacent, pixels C to 4 bytes apart, any row stride
  TensorView out;    // [K, crop h, crop w] if planar, else [crop h, crop w, K]; uint8 or float32; K <= C
  TensorView table;  // [K, 256]   float32, the output value of each uint8 value; only for float32 outputs
  TensorView workspace;  // [resample_workspace(args)]  uint8
  Filter filter;
  int64_t height, width;  // of the whole resized image
  float box[4];           // left, top, right, bottom of the part of the source that is resized
  int64_t top, left;      // of the crop within the resized image; its size is that of `out`
  bool flip;              // mirror left-right, after the crop
  bool planar;
  bool vertical_first;  // order of the passes: Pillow >= 13 starts with the axis that shrinks most
  int threads;          // at most this many; 0: as many as there are
};

int64_t resample_workspace(const Resample& args);  // bytes; does not look at args.workspace
void resample(const Resample& args, Stream stream);

// The weights of one axis, for each output position that is computed. Taps come in pairs, each weight k split
// as k = high * 2^16 + low with 16-bit parts: two multiply-adds of 16-bit pairs then give the exact sum.
struct ResampleAxis {
  int64_t count;      // output positions
  int64_t max_pairs;  // of taps, per position
  int32_t* first;     // [count]  source index of the first tap
  int32_t* taps;      // [count]
  int32_t* weights;   // [count, max_pairs, 2]  (low, low), (high, high) of taps 2i and 2i + 1
  double scale;       // source step from one output position to the next
  double support;     // half width of the filter, in source pixels

  const int32_t* weights_at(int64_t i) const { return weights + i * max_pairs * 2; }
};

// How a call is cut up. Everything the kernels need beside the arguments.
struct ResamplePlan {
  static constexpr int64_t kRows = 32;  // rows that are filtered horizontally together

  ResampleAxis x, y;
  int64_t pass_bytes;          // between the two passes on the GPU, at most
  double* values;              // [longest filter]  scratch of the weight computation
  int64_t pixel;               // bytes from source pixel to source pixel
  int64_t begin, end;          // source columns that are needed
  int64_t planes, inner;       // an output row as the kernel sees it: planes x inner bytes
  int64_t plane_pitch, pitch;  // bytes from plane to plane and from row to row
  int64_t chunk;               // output columns per horizontal sweep
  int64_t tile_bytes;          // transposed source of such a sweep
  int64_t band_rows;           // rows that are kept between the passes
  int64_t band_pitch;          // bytes from one to the next
  int64_t parts;               // threads
  int64_t part_bytes;          // workspace of each
  uint8_t* part_memory;
};

namespace cpu {
template <Isa isa>
void resample(const Resample& args, const ResamplePlan& plan);
}  // namespace cpu

namespace cuda {
// The plan's tables are in host memory, `table_bytes` from `tables` on; the workspace takes a copy of them
// and, behind it, what one pass hands to the other.
void resample(const Resample& args, const ResamplePlan& plan, const uint8_t* tables, int64_t table_bytes,
              Stream stream);
}  // namespace cuda

}  // namespace va
