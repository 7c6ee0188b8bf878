// SPDX-License-Identifier: Apache-2.0
// The register-blocked matrix product of attention and the packing of its operands. Included only by
// attention_cpu.cpp. Every element of a product is one chain of multiply-adds in rising order of the summed
// index: its bits do not depend on its place in a tile. Chains of several blocks are added up in order, which
// also keeps the rounding error of long sums low.
#pragma once
#include <cstring>
#include <utility>

#include "kernels/common/simd.h"

namespace va::VA_ISA {
namespace {

constexpr int kTileRows = 6;  // with kTileVecs columns: all but a few registers
constexpr int kTileVecs = VA_SIMD_BYTES == 64 ? 4 : 2;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// A row of `vecs` vectors is cut into panels of equal width, the last may be narrower.
inline int64_t panel_vecs(int64_t vecs) { return vecs ? ceil_div(vecs, ceil_div(vecs, kTileVecs)) : 1; }

// out[r][c] (+)= sum over s < steps of a[r * a_row + s * a_step] * b[s * ldb + c], kTileRows rows and
// kVecs vectors of columns.
template <bool kAdd, int kVecs, class C>
__attribute__((noinline)) void tile(C* out, int64_t ldo, const C* a, int64_t a_row, int64_t a_step,
                                    const C* b, int64_t ldb, int64_t steps) {
  constexpr int L = kLanes<C>;
  Vec<C> sum[kTileRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) sum[r][v] = Vec<C>{};
  for (int64_t s = 0; s < steps; ++s, a += a_step, b += ldb) {
    Vec<C> column[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) column[v] = load(b + v * L);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      const Vec<C> row = splat(a[r * a_row]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sum[r][v] += row * column[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      C* const o = out + r * ldo + v * L;
      store(o, kAdd ? load(o) + sum[r][v] : sum[r][v]);
    }
}

// The same for a number of vectors known at run time; nothing for vecs <= 0.
template <bool kAdd, class C>
VA_INLINE void tile(int64_t vecs, C* out, int64_t ldo, const C* a, int64_t a_row, int64_t a_step, const C* b,
                    int64_t ldb, int64_t steps) {
  if (vecs <= 0) return;
  if (vecs == 1) return tile<kAdd, 1>(out, ldo, a, a_row, a_step, b, ldb, steps);
  if (vecs == 2) return tile<kAdd, 2>(out, ldo, a, a_row, a_step, b, ldb, steps);
  if constexpr (kTileVecs > 2) {
    if (vecs == 3) return tile<kAdd, 3>(out, ldo, a, a_row, a_step, b, ldb, steps);
    return tile<kAdd, 4>(out, ldo, a, a_row, a_step, b, ldb, steps);
  }
}

// kLanes vectors of kLanes values, transposed by swapping ever smaller off-diagonal blocks.
template <int kBlock, class V, size_t... i>
VA_INLINE void swap_blocks(V& a, V& b, std::index_sequence<i...>) {
  constexpr int n = sizeof...(i);
  const V low = __builtin_shufflevector(a, b, ((i & kBlock) ? i - kBlock + n : i)...);
  b = __builtin_shufflevector(a, b, ((i & kBlock) ? i + n : i + kBlock)...);
  a = low;
}
template <int kBlock, int kCount, class V>
VA_INLINE void transpose(V (&x)[kCount]) {
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i)
    if (!(i & kBlock)) swap_blocks<kBlock>(x[i], x[i + kBlock], std::make_index_sequence<kCount>());
  if constexpr (kBlock > 1) transpose<kBlock / 2>(x);
}

// dst[row][0, round_up(dim)) = factor * src[row], zeros behind dim; rows up to rows_padded are zero.
template <class T, class C = compute_t<T>>
void pack_rows(C* dst, const T* src, int64_t stride, int64_t rows, int64_t rows_padded, int64_t dim,
               C factor) {
  const int64_t ld = round_up(dim, kLanes<C>);
  for (int64_t r = 0; r < rows; ++r)
    for_lanes<C>(
        dim, [&](int64_t i, auto n) { store(dst + r * ld + i, load_n(src + r * stride + i, n) * factor); });
  std::memset(dst + rows * ld, 0, static_cast<size_t>((rows_padded - rows) * ld) * sizeof(C));
}

// dst[panel][i][row of the panel] = src[row][i]: rows become columns, in panels of `vecs` vectors, with zeros
// for the rows that fill up the last vector.
template <class T, class C = compute_t<T>>
void pack_columns(C* dst, const T* src, int64_t stride, int64_t rows, int64_t dim, int64_t vecs) {
  constexpr int L = kLanes<C>;
  const int64_t width = vecs * L;
  for (int64_t row = 0; row < rows; row += L) {
    C* const out = dst + row / width * width * dim + row % width;
    for_lanes<C>(dim, [&](int64_t i, auto n) {
      Vec<C> x[L];
#pragma GCC unroll 16
      for (int r = 0; r < L; ++r) x[r] = row + r < rows ? load_n(src + (row + r) * stride + i, n) : Vec<C>{};
      transpose<L / 2>(x);
      for (int j = 0; j < n; ++j) store(out + (i + j) * width, x[j]);
    });
  }
}

}  // namespace
}  // namespace va::VA_ISA
