// SPDX-License-Identifier: Apache-2.0
// Lanes are channels. All 16 pixels of a vector of channels are read twice, the second time from the cache,
// and leave as whole 32-bit words, so no instruction set needs to narrow or to shuffle.
#include "kernels/block_float/block_float.h"

#include "core/dispatch.h"
#include "core/parallel.h"
#include "kernels/common/simd.h"

namespace va {
namespace VA_ISA {
namespace {

constexpr int kPixels = kBlockFloatPixels, kHalf = kPixels / 2;
constexpr int64_t kGrainValues = 32768;
using F = Vec<float>;
using I = Vec<int32_t>;
using U = Vec<uint32_t>;
typedef uint8_t Bytes __attribute__((vector_size(kLanes<float>)));

// n lanes; whole vectors without the detour of load_n and store_n, which GCC takes through the stack.
template <class N>
VA_INLINE F load_lanes(const float* p, N n) {
  if constexpr (std::is_same_v<N, int64_t>) {
    return load_n(p, n);
  } else {
    return load(p);
  }
}
template <class N>
VA_INLINE void store_lanes(float* p, F v, N n) {
  if constexpr (std::is_same_v<N, int64_t>) {
    store_n(p, v, n);
  } else {
    store(p, v);
  }
}
template <class N>
VA_INLINE U load_words(const uint32_t* p, N n) {
  return (U)load_lanes(reinterpret_cast<const float*>(p), n);
}
template <class N>
VA_INLINE void store_words(uint32_t* p, U v, N n) {
  store_lanes(reinterpret_cast<float*>(p), (F)v, n);
}

// 2^exponent for raw; 0 for a block of zeros, NaN for one that is not finite.
VA_INLINE F scale_of(I raw, I biased) {
  const I bits = (raw >= kBlockFloatSmallest) & (biased << 23);
  return (F)(raw == kBlockFloatNan ? splat(0x7fc00000) : bits);
}

// The bits of x 2^(145 - raw) + magic: its lowest 20 are q. A NaN becomes the largest q.
VA_INLINE U rounded(F x, F scale) {
  const F sum = vmin(fmadd(x, scale, splat(kBlockFloatMagic)), splat(kBlockFloatMagic + kBlockFloatLargest));
  return (U)vmax(sum, splat(kBlockFloatMagic - kBlockFloatLargest));
}

// n channels of a block of `pixels` <= 16 pixels; the words of a channel are `channels` apart. The same
// channels of the next block are fetched ahead: lines so far apart are not what the hardware expects.
template <class P, class N>
VA_INLINE void pack_lanes(const float* x, int64_t stride, P pixels, uint32_t* words, uint8_t* exponents,
                          int64_t channels, N n) {
  const auto pixel = [&](int p) { return p < pixels ? load_lanes(x + p * stride, n) : F{}; };
  I largest{};
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) __builtin_prefetch(x + (p + kPixels) * stride);
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) largest = vmax(largest, (I)pixel(p) & 0x7fffffff);
  const I raw = largest >> 23;
  const F scale = scale_of(raw, 272 - raw);
  U low0{}, low1{};
#pragma GCC unroll 8
  for (int p = 0; p < kHalf; ++p) {
    const U a = rounded(pixel(p), scale), b = rounded(pixel(p + kHalf), scale);
    store_words(words + p * channels, (a >> 4 & 0xffffu) | (b << 12 & 0xffff0000u), n);
    low0 |= (a & 15u) << 4 * p;
    low1 |= (b & 15u) << 4 * p;
  }
  store_words(words + kHalf * channels, low0, n);
  store_words(words + (kHalf + 1) * channels, low1, n);
  const Bytes kept = __builtin_convertvector(raw & (raw >= kBlockFloatSmallest), Bytes);
  std::memcpy(exponents, &kept, static_cast<size_t>(n));
}

template <class P, class N>
VA_INLINE void unpack_lanes(const uint32_t* words, const uint8_t* exponents, int64_t channels, float* x,
                            int64_t stride, P pixels, N n) {
  Bytes kept{};
  std::memcpy(&kept, exponents, static_cast<size_t>(n));
  const I raw = __builtin_convertvector(kept, I);
  const F scale = scale_of(raw, raw - 18);
  const U low0 = load_words(words + kHalf * channels, n),
          low1 = load_words(words + (kHalf + 1) * channels, n);
#pragma GCC unroll 10
  for (int p = 0; p < kBlockFloatWords; ++p) __builtin_prefetch(words + (p + kBlockFloatWords) * channels);
  const auto put = [&](int p, U high, U low) {
    const I q = (I)high >> 12 | (I)(low & 15u);
    if (p < pixels) store_lanes(x + p * stride, __builtin_convertvector(q, F) * scale, n);
  };
#pragma GCC unroll 8
  for (int p = 0; p < kHalf; ++p) {
    const U high = load_words(words + p * channels, n);
    put(p, high << 16, low0 >> 4 * p);
    put(p + kHalf, high & 0xffff0000u, low1 >> 4 * p);
  }
}

// body(first value of a block, its pixels, its words, its exponents) for all blocks of all rows.
template <class Body>
void for_blocks(const BlockFloat& a, const BlockFloatRow& row, const int64_t* offsets, Body&& body) {
  const int64_t width = a.rows.sizes[1], channels = a.rows.sizes[2];
  parallel_for(
      a.rows.sizes[0] * row.blocks, kGrainValues / (kPixels * channels) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t r = i / row.blocks, b = i - r * row.blocks, first = b * kPixels;
          float* const x = a.rows.ptr<float>() + r * a.rows.strides[0] + first * a.rows.strides[1];
          uint8_t* const packed = a.store.ptr<uint8_t>() + offsets[r];
          uint32_t* const words = reinterpret_cast<uint32_t*>(packed) + b * kBlockFloatWords * channels;
          uint8_t* const exponents = packed + row.exponents + b * channels;
          if (width - first >= kPixels) {
            body(x, std::integral_constant<int, kPixels>{}, words, exponents);
          } else {
            body(x, static_cast<int>(width - first), words, exponents);
          }
        }
      });
}

}  // namespace
}  // namespace VA_ISA

namespace cpu {

template <>
void pack_block_float<kIsa>(const BlockFloat& a, const BlockFloatRow& row, const int64_t* offsets) {
  const int64_t channels = a.rows.sizes[2], stride = a.rows.strides[1];
  VA_ISA::for_blocks(a, row, offsets, [&](const float* x, auto pixels, uint32_t* words, uint8_t* exponents) {
    VA_ISA::for_lanes<float>(channels, [&](int64_t c, auto n) {
      VA_ISA::pack_lanes(x + c, stride, pixels, words + c, exponents + c, channels, n);
    });
  });
}

template <>
void unpack_block_float<kIsa>(const BlockFloat& a, const BlockFloatRow& row, const int64_t* offsets) {
  const int64_t channels = a.rows.sizes[2], stride = a.rows.strides[1];
  VA_ISA::for_blocks(a, row, offsets,
                     [&](float* x, auto pixels, const uint32_t* words, const uint8_t* exponents) {
                       VA_ISA::for_lanes<float>(channels, [&](int64_t c, auto n) {
                         VA_ISA::unpack_lanes(words + c, exponents + c, channels, x + c, stride, pixels, n);
                       });
                     });
}

}  // namespace cpu
}  // namespace va
