// SPDX-License-Identifier: Apache-2.0
#include "kernels/resample/resample.h"

#include <algorithm>

#include "core/parallel.h"
#include "kernels/common/simd.h"

// Both passes are one primitive: a weighted sum of byte rows that lie a fixed distance apart, rounded to
// bytes (weighted_rows). The vertical pass applies it to rows of the image. The horizontal pass transposes 32
// rows at a time, so that source columns become such rows, and transposes the result back.
namespace va {
namespace VA_ISA {
namespace {

constexpr int kRows = ResamplePlan::kRows;
constexpr int kPrecisionBits = 22;
constexpr int kBlock = VA_SIMD_BYTES / 2;  // bytes of a row that are summed together

using Words = Vec<int16_t>;
using Sums = Vec<uint32_t>;  // modulo 2^32: the parts of a sum may overflow, the sum does not

// ---- 16-bit arithmetic of the ISA ----------------------------------------------------------------------

VA_INLINE Words widen(const uint8_t* p) {
  typedef uint8_t Bytes __attribute__((vector_size(kBlock)));
  Bytes b;
  std::memcpy(&b, p, sizeof(b));
  return __builtin_convertvector(b, Words);
}

// interleave<0>(a, b) and interleave<1>(a, b): a0 b0 a1 b1 ... of the lower and upper halves, in any order
// that narrow() undoes. multiply_add: the sums of products of adjacent pairs.
#if defined(__x86_64__) && VA_SIMD_BYTES == 64
template <int half>
VA_INLINE Words interleave(Words a, Words b) {
  return (Words)(half ? _mm512_unpackhi_epi16((__m512i)a, (__m512i)b)
                      : _mm512_unpacklo_epi16((__m512i)a, (__m512i)b));
}
VA_INLINE Sums multiply_add(Words a, Words k) { return (Sums)_mm512_madd_epi16((__m512i)a, (__m512i)k); }
VA_INLINE void narrow(uint8_t* p, Vec<int32_t> lower, Vec<int32_t> upper) {
  const __m512i words = _mm512_max_epi16(_mm512_packs_epi32((__m512i)lower, (__m512i)upper), __m512i{});
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtusepi16_epi8(words));
}
#elif defined(__x86_64__) && VA_SIMD_BYTES == 32
template <int half>
VA_INLINE Words interleave(Words a, Words b) {
  return (Words)(half ? _mm256_unpackhi_epi16((__m256i)a, (__m256i)b)
                      : _mm256_unpacklo_epi16((__m256i)a, (__m256i)b));
}
VA_INLINE Sums multiply_add(Words a, Words k) { return (Sums)_mm256_madd_epi16((__m256i)a, (__m256i)k); }
VA_INLINE void narrow(uint8_t* p, Vec<int32_t> lower, Vec<int32_t> upper) {
  const __m256i words = _mm256_packs_epi32((__m256i)lower, (__m256i)upper);
  const __m256i bytes = _mm256_packus_epi16(words, words);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_castsi256_si128(_mm256_permute4x64_epi64(bytes, 0x08)));
}
#elif defined(__x86_64__)
template <int half>
VA_INLINE Words interleave(Words a, Words b) {
  return (Words)(half ? _mm_unpackhi_epi16((__m128i)a, (__m128i)b)
                      : _mm_unpacklo_epi16((__m128i)a, (__m128i)b));
}
VA_INLINE Sums multiply_add(Words a, Words k) { return (Sums)_mm_madd_epi16((__m128i)a, (__m128i)k); }
VA_INLINE void narrow(uint8_t* p, Vec<int32_t> lower, Vec<int32_t> upper) {
  const __m128i words = _mm_packs_epi32((__m128i)lower, (__m128i)upper);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}
#else
template <int half>
VA_INLINE Words interleave(Words a, Words b) {
  Words r;
  for (int i = 0; i < kBlock / 2; ++i) {
    r[2 * i] = a[half * kBlock / 2 + i];
    r[2 * i + 1] = b[half * kBlock / 2 + i];
  }
  return r;
}
VA_INLINE Sums multiply_add(Words a, Words k) {
  const Vec<int32_t> x = (Vec<int32_t>)a, y = (Vec<int32_t>)k;
  return (Sums)((x >> 16) * (y >> 16)) + (Sums)(((x << 16) >> 16) * ((y << 16) >> 16));
}
VA_INLINE void narrow(uint8_t* p, Vec<int32_t> lower, Vec<int32_t> upper) {
  for (int i = 0; i < kBlock / 2; ++i) {
    p[i] = static_cast<uint8_t>(std::clamp<int32_t>(lower[i], 0, 255));
    p[i + kBlock / 2] = static_cast<uint8_t>(std::clamp<int32_t>(upper[i], 0, 255));
  }
}
#endif

// ---- Weighted sums of rows -------------------------------------------------------------------------------

// U blocks side by side: out = clamp((sum of k * row + 1/2) >> 22).
template <int U>
VA_INLINE void weighted_blocks(const uint8_t* row, int64_t stride, const int32_t* weights, int64_t taps,
                               uint8_t* out) {
  Sums low[U][2], high[U][2];
  for (int u = 0; u < U; ++u) {
    low[u][0] = low[u][1] = splat<uint32_t>(1u << (kPrecisionBits - 1));
    high[u][0] = high[u][1] = Sums{};
  }
  for (int64_t t = 0; t < taps; t += 2, row += 2 * stride) {
    const int64_t next = t + 1 < taps ? stride : 0;  // an odd last tap is paired with itself, weight 0
    const Words k_low = (Words)splat<int32_t>(weights[t]);
    const Words k_high = (Words)splat<int32_t>(weights[t + 1]);
    for (int u = 0; u < U; ++u) {
      const Words a = widen(row + u * kBlock), b = widen(row + next + u * kBlock);
      const Words ab0 = interleave<0>(a, b), ab1 = interleave<1>(a, b);
      low[u][0] += multiply_add(ab0, k_low);
      low[u][1] += multiply_add(ab1, k_low);
      high[u][0] += multiply_add(ab0, k_high);
      high[u][1] += multiply_add(ab1, k_high);
    }
  }
  for (int u = 0; u < U; ++u) {
    const auto s0 = (Vec<int32_t>)(low[u][0] + (high[u][0] << 16));
    const auto s1 = (Vec<int32_t>)(low[u][1] + (high[u][1] << 16));
    narrow(out + u * kBlock, s0 >> kPrecisionBits, s1 >> kPrecisionBits);
  }
}

// Whole blocks; the last one may overlap the one before it. Fewer bytes than a block: one by one.
VA_INLINE void weighted_rows(const uint8_t* row, int64_t stride, const int32_t* weights, int64_t taps,
                             uint8_t* out, int64_t bytes) {
  int64_t i = 0;
  if constexpr (kBlock == 32)  // 32 registers: three channels at once
    for (; i + 3 * kBlock <= bytes; i += 3 * kBlock)
      weighted_blocks<3>(row + i, stride, weights, taps, out + i);
  for (; i + 2 * kBlock <= bytes; i += 2 * kBlock)
    weighted_blocks<2>(row + i, stride, weights, taps, out + i);
  for (; i + kBlock <= bytes; i += kBlock) weighted_blocks<1>(row + i, stride, weights, taps, out + i);
  if (i == bytes) return;
  if (bytes >= kBlock) {
    i = bytes - kBlock;
    return weighted_blocks<1>(row + i, stride, weights, taps, out + i);
  }
  for (; i < bytes; ++i) {
    uint32_t sum = 1u << (kPrecisionBits - 1);
    for (int64_t t = 0; t < taps; ++t) {
      int16_t part[4];  // low, low, high, high of the pair
      std::memcpy(part, weights + t / 2 * 2, sizeof(part));
      sum += row[i + t * stride] *
             (static_cast<uint32_t>(part[t % 2]) + (static_cast<uint32_t>(part[2 + t % 2]) << 16));
    }
    out[i] = static_cast<uint8_t>(std::clamp(static_cast<int32_t>(sum) >> kPrecisionBits, 0, 255));
  }
}

// ---- Transposition ---------------------------------------------------------------------------------------

// 16 x 16 bytes in each 16-byte part of the vectors.
#if defined(__x86_64__) && VA_SIMD_BYTES >= 32
constexpr int kParts = 2;
using Tile = __m256i;
VA_INLINE Tile interleave_low(Tile a, Tile b) { return _mm256_unpacklo_epi8(a, b); }
VA_INLINE Tile interleave_high(Tile a, Tile b) { return _mm256_unpackhi_epi8(a, b); }
#elif defined(__x86_64__)
constexpr int kParts = 1;
using Tile = __m128i;
VA_INLINE Tile interleave_low(Tile a, Tile b) { return _mm_unpacklo_epi8(a, b); }
VA_INLINE Tile interleave_high(Tile a, Tile b) { return _mm_unpackhi_epi8(a, b); }
#else
constexpr int kParts = 1;
typedef uint8_t Tile __attribute__((vector_size(16)));
VA_INLINE Tile interleave_low(Tile a, Tile b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
VA_INLINE Tile interleave_high(Tile a, Tile b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#endif
constexpr int kTileRows = 16 * kParts;

// Four perfect shuffles transpose 16 x 16.
VA_INLINE void transpose(Tile (&t)[16]) {
  for (int step = 0; step < 4; ++step) {
    Tile u[16];
    for (int i = 0; i < 8; ++i) {
      u[2 * i] = interleave_low(t[i], t[i + 8]);
      u[2 * i + 1] = interleave_high(t[i], t[i + 8]);
    }
    for (int i = 0; i < 16; ++i) t[i] = u[i];
  }
}

// columns[c * kRows + r] = rows[r][c] for c in [0, bytes): kRows rows, of which the last is repeated when
// there are fewer.
void columns_from_rows(const uint8_t* source, int64_t stride, int64_t rows, int64_t bytes, uint8_t* columns) {
  for (int64_t c = 0; c < bytes; c += 16) {
    const size_t n = static_cast<size_t>(std::min<int64_t>(16, bytes - c));
    for (int64_t r0 = 0; r0 < kRows; r0 += kTileRows) {
      Tile t[16];
      for (int r = 0; r < 16; ++r) {
        for (int part = 0; part < kParts; ++part) {
          const uint8_t* p = source + std::min(r0 + r + part * 16, rows - 1) * stride + c;
          uint8_t* const to = reinterpret_cast<uint8_t*>(&t[r]) + part * 16;
          if (n == 16)
            std::memcpy(to, p, 16);
          else
            std::memset(to, 0, 16), std::memcpy(to, p, n);
        }
      }
      transpose(t);
      for (int i = 0; i < 16; ++i) std::memcpy(columns + (c + i) * kRows + r0, &t[i], sizeof(Tile));
    }
  }
}

// rows[r][c] = columns[c * stride + r] for 16 columns and the first `count` rows.
VA_INLINE void rows_from_columns(const uint8_t* columns, int64_t stride, uint8_t* rows, int64_t pitch,
                                 int64_t count) {
  for (int64_t r0 = 0; r0 < count; r0 += kTileRows) {
    Tile t[16];
    for (int i = 0; i < 16; ++i) std::memcpy(&t[i], columns + i * stride + r0, sizeof(Tile));
    transpose(t);
    for (int r = 0; r < 16; ++r)
      for (int part = 0; part < kParts; ++part)
        if (const int64_t row = r0 + r + part * 16; row < count)
          std::memcpy(rows + row * pitch, reinterpret_cast<const uint8_t*>(&t[r]) + part * 16, 16);
  }
}

// ---- The two passes --------------------------------------------------------------------------------------

// `count` <= kRows rows, each from source column p.begin on, filtered horizontally into rows of output
// columns.
void horizontal(const Resample& a, const ResamplePlan& p, const uint8_t* source, int64_t stride,
                int64_t count, uint8_t* tile, uint8_t* out) {
  const ResampleAxis& x = p.x;
  const int64_t channels = p.planes * p.inner / x.count;
  alignas(64) uint8_t block[16 * 4 * kRows];  // [16 pixels, channels, kRows]
  for (int64_t begin = 0; begin < x.count; begin += p.chunk) {
    const int64_t end = std::min(x.count, begin + p.chunk);
    const int64_t lowest = std::min(x.first[begin], x.first[end - 1]);
    const int64_t highest = std::max(x.first[begin] + x.taps[begin], x.first[end - 1] + x.taps[end - 1]);
    columns_from_rows(source + (lowest - p.begin) * p.pixel, stride, count,
                      (highest - lowest - 1) * p.pixel + channels, tile);
    for (int64_t column = begin; column < end; column += 16) {
      const int64_t n = std::min<int64_t>(16, end - column);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = column + i;
        weighted_rows(tile + (x.first[at] - lowest) * p.pixel * kRows, p.pixel * kRows, x.weights_at(at),
                      x.taps[at], block + i * channels * kRows, channels * kRows);
      }
      for (int64_t c = 0; c < channels; ++c) {
        if (a.planar) {
          rows_from_columns(block + c * kRows, channels * kRows, out + c * p.plane_pitch + column, p.pitch,
                            count);
        } else {
          rows_from_columns(block + c * 16 * kRows, kRows, out + column * channels + c * 16, p.pitch, count);
        }
      }
    }
  }
}

void write_row(const Resample& a, const ResamplePlan& p, const uint8_t* bytes, int64_t row) {
  const int64_t channels = p.planes == 1 ? p.inner / p.x.count : 1;
  for (int64_t plane = 0; plane < p.planes; ++plane, bytes += p.plane_pitch) {
    const int64_t at = a.planar ? plane * a.out.strides[0] + row * a.out.strides[1] : row * a.out.strides[0];
    if (a.out.dtype == DType::u8) {
      std::memcpy(a.out.ptr<uint8_t>() + at, bytes, static_cast<size_t>(p.inner));
      continue;
    }
    float* const out = a.out.ptr<float>() + at;
    for (int64_t c = 0; c < channels; ++c) {
      const float* const table = a.table.ptr<float>() + (plane + c) * 256;
      for (int64_t i = c; i < p.inner; i += channels) out[i] = table[bytes[i]];
    }
  }
}

// Output rows [begin, end). Horizontally filtered rows wait in a band of memory until no output needs them.
void horizontal_first(const Resample& a, const ResamplePlan& p, int64_t begin, int64_t end, uint8_t* memory) {
  const ResampleAxis& y = p.y;
  const uint8_t* const source = a.image.ptr<uint8_t>() + p.begin * p.pixel;
  const int64_t stride = a.image.strides[0];
  uint8_t* const line = memory;
  uint8_t* const band = line + p.pitch;
  uint8_t* const tile = band + p.band_rows * p.pitch;
  int64_t base = y.first[begin], ready = base;  // the band holds source rows [base, ready)
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = y.first[row];
    if (first > ready) base = ready = first;  // "nearest" may skip source rows
    while (ready < first + y.taps[row]) {
      if (ready - base + kRows > p.band_rows) {
        std::memmove(band, band + (first - base) * p.pitch, static_cast<size_t>((ready - first) * p.pitch));
        base = first;
      }
      const int64_t count = std::min<int64_t>(kRows, a.image.sizes[0] - ready);
      horizontal(a, p, source + ready * stride, stride, count, tile, band + (ready - base) * p.pitch);
      ready += count;
    }
    weighted_rows(band + (first - base) * p.pitch, p.pitch, y.weights_at(row), y.taps[row], line, p.pitch);
    write_row(a, p, line, row);
  }
}

void vertical_first(const Resample& a, const ResamplePlan& p, int64_t begin, int64_t end, uint8_t* memory) {
  const ResampleAxis& y = p.y;
  const uint8_t* const source = a.image.ptr<uint8_t>() + p.begin * p.pixel;
  const int64_t stride = a.image.strides[0], bytes = (p.end - p.begin - 1) * p.pixel + a.image.sizes[2];
  uint8_t* const lines = memory;
  uint8_t* const band = lines + kRows * p.pitch;
  uint8_t* const tile = band + kRows * p.band_pitch;
  for (int64_t row = begin; row < end; row += kRows) {
    const int64_t count = std::min<int64_t>(kRows, end - row);
    for (int64_t i = 0; i < count; ++i) {
      weighted_rows(source + y.first[row + i] * stride, stride, y.weights_at(row + i), y.taps[row + i],
                    band + i * p.band_pitch, bytes);
    }
    horizontal(a, p, band, p.band_pitch, count, tile, lines);
    for (int64_t i = 0; i < count; ++i) write_row(a, p, lines + i * p.pitch, row + i);
  }
}

}  // namespace
}  // namespace VA_ISA

namespace cpu {

template <>
void resample<kIsa>(const Resample& a, const ResamplePlan& p) {
  parallel_for(p.parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * p.y.count / p.parts, last = (part + 1) * p.y.count / p.parts;
      (a.vertical_first ? VA_ISA::vertical_first : VA_ISA::horizontal_first)(
          a, p, first, last, p.part_memory + part * p.part_bytes);
    }
  });
}

}  // namespace cpu
}  // namespace va
