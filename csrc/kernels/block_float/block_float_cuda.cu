// SPDX-License-Identifier: Apache-2.0
// A thread takes the 16 pixels of one channel; neighbouring threads have neighbouring channels, of the next
// block after the last.
#include "kernels/block_float/block_float.h"

#include "core/dispatch.h"
#include "kernels/common/vectors.cuh"

namespace va {
namespace {

using namespace simt;

constexpr int kThreads = 128;
constexpr int kRows = 256;  // a launch: their offsets travel as a kernel argument
constexpr int kPixels = kBlockFloatPixels, kHalf = kPixels / 2;

struct Params {
  float* x;  // of the first row
  int64_t row_stride, pixel_stride;
  int64_t width, channels, values;  // values: blocks * channels
  uint8_t* store;
  int64_t exponents;
  int64_t offsets[kRows];
};

VA_DEVICE int32_t bits_of(float x) {
  int32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
VA_DEVICE float from_bits(int32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// 2^exponent for raw; 0 for a block of zeros, NaN for one that is not finite.
VA_DEVICE float scale_of(int raw, int biased) {
  return from_bits(raw == kBlockFloatNan ? 0x7fc00000 : raw >= kBlockFloatSmallest ? biased << 23 : 0);
}

// The bits of x 2^(145 - raw) + magic: its lowest 20 are q. A NaN becomes the largest q.
VA_DEVICE uint32_t rounded(float x, float scale) {
  const float sum = fminf(fmaf(x, scale, kBlockFloatMagic), kBlockFloatMagic + kBlockFloatLargest);
  return static_cast<uint32_t>(bits_of(fmaxf(sum, kBlockFloatMagic - kBlockFloatLargest)));
}

template <bool kPacks>
VA_KERNEL(kThreads)
block_float_kernel(const VA_PARAMETER Params p) {
  const int64_t i = static_cast<int64_t>(block_x()) * kThreads + thread_index();
  if (i >= p.values) return;
  const int64_t b = i / p.channels, c = i - b * p.channels, left = p.width - b * kPixels;
  float* const x = p.x + block_y() * p.row_stride + b * kPixels * p.pixel_stride + c;
  uint8_t* const row = p.store + p.offsets[block_y()];
  uint32_t* const words = reinterpret_cast<uint32_t*>(row) + b * kBlockFloatWords * p.channels + c;
  uint8_t* const exponent = row + p.exponents + i;
  if constexpr (kPacks) {
    float v[kPixels];
    int32_t largest = 0;
#pragma unroll
    for (int j = 0; j < kPixels; ++j) v[j] = j < left ? x[j * p.pixel_stride] : 0.0f;
#pragma unroll
    for (int j = 0; j < kPixels; ++j) {
      const int32_t magnitude = bits_of(v[j]) & 0x7fffffff;
      largest = largest > magnitude ? largest : magnitude;
    }
    const int raw = largest >> 23;
    const float scale = scale_of(raw, 272 - raw);
    uint32_t low0 = 0, low1 = 0;
#pragma unroll
    for (int j = 0; j < kHalf; ++j) {
      const uint32_t first = rounded(v[j], scale), second = rounded(v[j + kHalf], scale);
      words[j * p.channels] = (first >> 4 & 0xffffu) | (second << 12 & 0xffff0000u);
      low0 |= (first & 15u) << 4 * j;
      low1 |= (second & 15u) << 4 * j;
    }
    words[kHalf * p.channels] = low0;
    words[(kHalf + 1) * p.channels] = low1;
    *exponent = static_cast<uint8_t>(raw >= kBlockFloatSmallest ? raw : 0);
  } else {
    const int raw = *exponent;
    const float scale = scale_of(raw, raw - 18);
    uint32_t w[kBlockFloatWords];
#pragma unroll
    for (int j = 0; j < kBlockFloatWords; ++j) w[j] = words[j * p.channels];
    const auto put = [&](int j, uint32_t high, uint32_t low) {
      const int32_t q = (static_cast<int32_t>(high) >> 12) | static_cast<int32_t>(low & 15u);
      if (j < left) x[j * p.pixel_stride] = static_cast<float>(q) * scale;
    };
#pragma unroll
    for (int j = 0; j < kHalf; ++j) {
      put(j, w[j] << 16, w[kHalf] >> 4 * j);
      put(j + kHalf, w[j] & 0xffff0000u, w[kHalf + 1] >> 4 * j);
    }
  }
}

template <bool kPacks>
void run(const char* op, const BlockFloat& a, const BlockFloatRow& row, Stream stream) {
  const int64_t rows = a.rows.sizes[0], width = a.rows.sizes[1], channels = a.rows.sizes[2];
  const int64_t values = row.blocks * channels;
  check(values / kThreads < (int64_t{1} << 31) - 1, "block_float: the rows are too long for the GPU kernel");
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t count = std::min<int64_t>(kRows, rows - first);
    Params p{a.rows.ptr<float>() + first * a.rows.strides[0],
             a.rows.strides[0],
             a.rows.strides[1],
             width,
             channels,
             values,
             a.store.ptr<uint8_t>(),
             row.exponents,
             {}};
    std::copy_n(a.offsets.begin() + first, count, p.offsets);
    launch(op, block_float_kernel<kPacks>,
           {static_cast<unsigned>((values + kThreads - 1) / kThreads), static_cast<unsigned>(count)},
           kThreads, 0, stream, p);
  }
}

}  // namespace

void cuda::pack_block_float(const BlockFloat& a, const BlockFloatRow& row, Stream stream) {
  run<true>("pack_block_float", a, row, stream);
}
void cuda::unpack_block_float(const BlockFloat& a, const BlockFloatRow& row, Stream stream) {
  run<false>("unpack_block_float", a, row, stream);
}

}  // namespace va
