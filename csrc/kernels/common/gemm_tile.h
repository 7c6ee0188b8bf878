// SPDX-License-Identifier: Apache-2.0
// The parts of a matrix product C[m, n] = sum_k A[m, k] B[n, k]: the register tile, the micro-kernel that
// fills one, and the packing that feeds it. gemm.h puts them together; other kernels may use them alone.
//
// Every element of a tile is one chain of FMAs in the order of k, whatever the tile's size: a row's result
// does not depend on the rows beside it, nor a column's on its neighbours.
#pragma once
#include <utility>

#include "kernels/common/simd.h"

#if defined(__clang__)
#define VA_UNROLL _Pragma("unroll")
#else
#define VA_UNROLL _Pragma("GCC unroll 64")
#endif

namespace va::VA_ISA {

// A tile is kTileRows x kTileCols accumulators. It takes all vector registers but those for one row of B and
// one element of A: 6 x 4 of 32 registers, 6 x 2 of 16. Rows are few because A may be read unpacked: rows
// that lie a multiple of 4096 bytes apart share the ways of one cache set.
inline constexpr int kTileRows = 6;
#if VA_SIMD_BYTES == 64 || defined(__aarch64__)
inline constexpr int kTileVecs = 4;
#else
inline constexpr int kTileVecs = 2;
#endif
template <class C>
inline constexpr int kTileCols = kTileVecs * kLanes<C>;

// Element (i, k) of a left (i = m) or right (i = n) operand is data[i * stride + k * k_stride].
template <class S>
struct Operand {
  const S* data;
  int64_t stride, k_stride;

  const S* at(int64_t i, int64_t k) const { return data + i * stride + k * k_stride; }
};

// Half a cache line: with a whole one for each k the fetches held up the loads of the product (Zen 4).
inline constexpr int64_t kAheadBytes = 32;

// tile[r][c] = sum_k A[r][k] panel[k][c], added to what tile holds if `accumulate`. S is the storage type of
// the panel, C the compute type. Only kRows rows and kVecs vectors of the tile are used. What lies at `ahead`
// is fetched meanwhile, kAheadBytes for each k: the caller's next panel, or the panel itself for nothing.
template <class S, class C, int kRows, int kVecs>
void micro_kernel(int64_t k_count, Operand<C> a, const S* panel, int64_t panel_stride, C* tile,
                  int64_t tile_stride, bool accumulate, const void* ahead) {
  Vec<C> sum[kRows][kVecs] = {};
  const C* row = a.data;
  for (int64_t k = 0; k < k_count; ++k) {
    Vec<C> b[kVecs];
    VA_UNROLL
    for (int v = 0; v < kVecs; ++v) b[v] = load(panel + v * kLanes<C>);
    VA_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const Vec<C> x = splat(row[r * a.stride]);
      VA_UNROLL
      for (int v = 0; v < kVecs; ++v) sum[r][v] = fmadd(x, b[v], sum[r][v]);
    }
    if (k % (64 / kAheadBytes) == 0) __builtin_prefetch(static_cast<const char*>(ahead) + k * kAheadBytes);
    row += a.k_stride;
    panel += panel_stride;
  }
  VA_UNROLL
  for (int r = 0; r < kRows; ++r) {
    VA_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      C* const out = tile + r * tile_stride + v * kLanes<C>;
      store(out, accumulate ? load(out) + sum[r][v] : sum[r][v]);
    }
  }
}

template <class S, class C>
using MicroKernel = void (*)(int64_t k_count, Operand<C> a, const S* panel, int64_t panel_stride, C* tile,
                             int64_t tile_stride, bool accumulate, const void* ahead);

namespace detail {
template <class S, class C, int... i>
constexpr MicroKernel<S, C> pick_micro_kernel(int index, std::integer_sequence<int, i...>) {
  constexpr MicroKernel<S, C> kTable[] = {micro_kernel<S, C, i / kTileVecs + 1, i % kTileVecs + 1>...};
  return kTable[index];
}
}  // namespace detail

// The micro-kernel for the first `rows` rows and `cols` columns of a tile (both at least 1).
template <class S, class C = compute_t<S>>
MicroKernel<S, C> micro_kernel_for(int64_t rows, int64_t cols) {
  const auto vecs = (cols + kLanes<C> - 1) / kLanes<C>;
  return detail::pick_micro_kernel<S, C>(static_cast<int>((rows - 1) * kTileVecs + vecs - 1),
                                         std::make_integer_sequence<int, kTileRows * kTileVecs>{});
}

// Transposes an L x L block held in L vectors, by swapping off-diagonal blocks of rising size.
template <int kStep, class V, size_t... l>
VA_INLINE void transpose_step(V* r, std::index_sequence<l...>) {
  constexpr size_t kSize = sizeof...(l), kS = kStep;
  VA_UNROLL
  for (size_t i = 0; i < kSize; ++i) {
    if (i & kS) continue;
    const V low = __builtin_shufflevector(r[i], r[i + kS], ((l & kS) ? kSize + l - kS : l)...);
    const V high = __builtin_shufflevector(r[i], r[i + kS], ((l & kS) ? kSize + l : l + kS)...);
    r[i] = low;
    r[i + kS] = high;
  }
  if constexpr (2 * kS < kSize) transpose_step<2 * kStep>(r, std::index_sequence<l...>{});
}

// Packs `cols` <= kTileCols columns of B from column n0 on, k in [k0, k0 + k_count), as panel[k][kTileCols];
// the columns past `cols` become zero.
template <class S, class C = compute_t<S>>
void pack_panel(const Operand<S>& b, int64_t n0, int64_t cols, int64_t k0, int64_t k_count, S* panel) {
  constexpr int kCols = kTileCols<C>, kL = kLanes<C>;
  if (b.k_stride == 1) {  // L x L blocks, transposed in registers
    typedef std::conditional_t<sizeof(S) == 2, uint16_t, S> Word;
    typedef Word Row __attribute__((vector_size(kL * sizeof(Word))));
    for (int64_t k = 0; k < k_count; k += kL) {
      const int64_t ks = k_count - k < kL ? k_count - k : kL;
      for (int c = 0; c < kCols; c += kL) {
        Row r[kL];
        VA_UNROLL
        for (int i = 0; i < kL; ++i) {
          r[i] = Row{};
          if (c + i >= cols) continue;
          const S* const from = b.at(n0 + c + i, k0 + k);
          if (ks == kL)
            std::memcpy(&r[i], from, sizeof(Row));
          else
            std::memcpy(&r[i], from, static_cast<size_t>(ks) * sizeof(S));
        }
        transpose_step<1>(r, std::make_index_sequence<kL>{});
        VA_UNROLL
        for (int i = 0; i < kL; ++i)
          if (i < ks) std::memcpy(panel + (k + i) * kCols + c, &r[i], sizeof(Row));
      }
    }
  } else if (b.stride == 1 && cols == kCols) {
    for (int64_t k = 0; k < k_count; ++k) std::memcpy(panel + k * kCols, b.at(n0, k0 + k), kCols * sizeof(S));
  } else {
    std::memset(panel, 0, static_cast<size_t>(k_count) * kCols * sizeof(S));
    for (int64_t k = 0; k < k_count; ++k)
      for (int64_t c = 0; c < cols; ++c) panel[k * kCols + c] = *b.at(n0 + c, k0 + k);
  }
}

// Whether the micro-kernel can read A where it lies: stored in the compute type, k contiguous.
template <class S>
bool readable_in_place(const Operand<S>& a) {
  return std::is_same_v<S, compute_t<S>> && a.k_stride == 1;
}

// Packs `rows` rows of A from m0 on, k in [k0, k0 + k_count), in the compute type. Returns the packed
// operand; tile t of it starts at .data + t * kTileRows * k_count.
template <class S, class C = compute_t<S>>
Operand<C> pack_rows(const Operand<S>& a, int64_t m0, int64_t rows, int64_t k0, int64_t k_count, C* out) {
  if (a.k_stride == 1) {  // [rows][k_count]
    for (int64_t r = 0; r < rows; ++r) {
      const S* const from = a.at(m0 + r, k0);
      C* const to = out + r * k_count;
      for_lanes<C>(k_count, [&](int64_t k, auto n) { store_n(to + k, load_n(from + k, n), n); });
    }
    return {out, k_count, 1};
  }
  for (int64_t k = 0; k < k_count; ++k) {  // [tile][k_count][kTileRows]
    for (int64_t r0 = 0; r0 < rows; r0 += kTileRows) {
      C* const to = out + r0 * k_count + k * kTileRows;
      const S* const from = a.at(m0 + r0, k0 + k);
      if (std::is_same_v<S, C> && a.stride == 1 && rows - r0 >= kTileRows) {
        std::memcpy(to, from, kTileRows * sizeof(C));
      } else {
        const int64_t n = rows - r0 < kTileRows ? rows - r0 : kTileRows;
        for (int64_t r = 0; r < n; ++r) to[r] = load_scalar(from + r * a.stride);
      }
    }
  }
  return {out, 1, kTileRows};
}

}  // namespace va::VA_ISA
