// SPDX-License-Identifier: Apache-2.0
// Rows of f32 pixels kept in 20.5 bits a value ("block floating point"). A block is 16 pixels of one channel:
//   raw = the biased exponent of its largest |x|, one byte;  q = rint(x 2^(145 - raw)), 20 bits with the sign
// and x' = q 2^(raw - 145). |q| is clamped to 2^19 - 1. A block with raw < 20 is all zeros and kept as raw 0;
// one that holds an infinity or a NaN has raw 255 and comes back as NaN. x' packs to the same bytes again.
#pragma once
#include <vector>

#include "core/cpu_features.h"
#include "core/tensor_view.h"

namespace va {

inline constexpr int kBlockFloatPixels = 16;
// 32-bit words that the 16 values of a channel make. Words 0 to 7 hold q >> 4 of pixel p in the low half and
// of pixel p + 8 in the high half; words 8 and 9 the lowest 4 bits of pixels 0 to 7 and 8 to 15, first
// lowest.
inline constexpr int kBlockFloatWords = 10;
inline constexpr int64_t kBlockFloatAlignment = 64;  // of the rows in the store, bytes

// What a row is made of, in this order: words [blocks, 10, C], exponents [blocks, C], padding to 64 bytes
// that is neither written nor read.
struct BlockFloatRow {
  int64_t blocks, exponents, bytes;  // how many; where exponents begin; the whole row
};
BlockFloatRow block_float_row(int64_t width, int64_t channels);

struct BlockFloat {
  TensorView rows;  // [R, W, C]  f32; the last axis is contiguous. Written by unpack: pixels must not overlap
  TensorView store;              // [N]        u8, from a multiple of 16 bytes on. Written by pack
  std::vector<int64_t> offsets;  // [R]  where in the store each row begins, in bytes
};

void pack_block_float(const BlockFloat& args, Stream stream);
void unpack_block_float(const BlockFloat& args, Stream stream);

// The arithmetic that all kernels share.
inline constexpr int kBlockFloatSmallest = 20;  // raw; below, a scale would not be a normal number
inline constexpr int kBlockFloatNan = 255;      // raw
inline constexpr float kBlockFloatMagic =
    0x1.8p23f;  // added to |x| < 2^22, rounds it to an integer, ties to even
inline constexpr float kBlockFloatLargest = 524287;  // of |q|

namespace cpu {
template <Isa isa>
void pack_block_float(const BlockFloat& args, const BlockFloatRow& row, const int64_t* offsets);
template <Isa isa>
void unpack_block_float(const BlockFloat& args, const BlockFloatRow& row, const int64_t* offsets);
}  // namespace cpu

namespace cuda {
void pack_block_float(const BlockFloat& args, const BlockFloatRow& row, Stream stream);
void unpack_block_float(const BlockFloat& args, const BlockFloatRow& row, Stream stream);
}  // namespace cuda

}  // namespace va
