// SPDX-License-Identifier: Apache-2.0
// Pieces that all tensor-core attention kernels share: a warp works on 16 rows, in the register layout of
// mma m16n8k16 (see simt.cuh), which WGMMA has too: with g = lane / 4, t = lane % 4 a lane holds rows g and
// g + 8 and, of every 8 columns, columns 2t and 2t + 1.
//
// A kernel is written once, over a type Pair: rows of two tensors (K and V, or Q and dO) in shared memory and
// the products with them. attention_sm80.cuh and attention_sm90.cuh each have one:
//   Pair::kD, kRows      columns, and rows of a chunk
//   Pair::kResident      one chunk holds all rows, and stays
//   pair.get(...)        makes a chunk the current one, x and y its two tiles; synchronises the block
//   Pair::begin, finish  around products that write the given accumulators
#pragma once
#include <algorithm>
#include <cmath>

#include "kernels/attention/attention.h"
#include "kernels/common/mma.cuh"

namespace va::attention_mma {

using namespace simt;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kWarpRows = 16;
constexpr int kBlockRows = kWarps * kWarpRows;
constexpr float kLog2e = 1.4426950408889634f;

// One [B, N, H, D] argument; D is contiguous.
template <class T>
struct Heads {
  T* data;
  int64_t batch, token, head;  // strides in elements
  VA_DEVICE T* row(int b, int h, int n) const { return data + b * batch + h * head + n * token; }
};
template <class T>
Heads<T> heads_of(const TensorView& v) {
  return {v.ptr<T>(), v.strides[0], v.strides[1], v.strides[2]};
}

// A operand: 16 rows x kD columns held by a warp, straight from global memory.
template <class T, int kD>
struct RowsOperand {
  uint32_t a[kD / 16][4];

  VA_DEVICE void load(const Heads<const T>& from, int b, int h, int first, int rows, int dim) {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = first + g + 8 * half;
      const T* p = r < rows ? from.row(b, h, r) : nullptr;
#pragma unroll
      for (int k = 0; k < kD / 16; ++k)
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int c = k * 16 + side * 8 + 2 * t;
          uint32_t word = 0;
          if (p && c < dim) word = load_pair(p + c);
          a[k][side * 2 + half] = word;
        }
    }
  }
};

// Accumulators rounded to T, as the A operand of the next product.
template <class T, int n>
VA_DEVICE RowsOperand<T, n * 8> packed(const float (&p)[n][4]) {
  RowsOperand<T, n * 8> out;
#pragma unroll
  for (int k = 0; k < n / 2; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const x = p[2 * k + i / 2] + i % 2 * 2;
      out.a[k][i] = pack2<T>(x[0], x[1]);
    }
  return out;
}

// Stores 16 x kD accumulators, scaled per row half, into rows first .. of a [B, N, H, D] output.
template <class T, int kD>
VA_DEVICE void store_rows(const float (&acc)[kD / 8][4], const float (&factor)[2], const Heads<T>& to, int b,
                          int h, int first, int rows, int dim) {
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = first + g + 8 * half;
    if (r >= rows) continue;
    T* p = to.row(b, h, r);
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
      const int c = n * 8 + 2 * t;
      if (c >= dim) continue;
      store_pair(p + c, pack2<T>(acc[n][2 * half] * factor[half], acc[n][2 * half + 1] * factor[half]));
    }
  }
}

// Query i sees the keys j < limit(i) that are not hidden.
struct Mask {
  const bool* padding;  // [B, M], true hides the key; may be null
  int64_t padding_batch, padding_key;
  int queries, keys;
  bool causal;
  VA_DEVICE int limit(int i) const {
    if (i >= queries) return 0;
    const int last = i + keys - queries + 1;
    return causal && last < keys ? last : keys;
  }
  // Keys that some query of row .. row + kBlockRows - 1 may see: none at or past this one. At least 0.
  VA_DEVICE int limit_of_rows(int row) const {
    const int last = row + kBlockRows < queries ? row + kBlockRows - 1 : queries - 1;
    const int most = limit(last);
    return most > 0 ? most : 0;
  }
  // No query before this one sees keys from j on.
  VA_DEVICE int first_query(int j) const {
    const int i = j - (keys - queries);
    return causal && i > 0 ? i : 0;
  }
  VA_DEVICE bool hides(int b, int j) const {
    return padding && j < keys && padding[b * padding_batch + j * padding_key];
  }
  VA_DEVICE bool sees(int b, int i, int j) const { return j < limit(i) && !hides(b, j); }
  // -inf for the scores of hidden keys, of which a warp holds keys key0 .. as columns.
  template <int n>
  VA_DEVICE void hide(float (&s)[n][4], int b, int key0) const {
    if (!padding) return;
    constexpr int kTiles = kWarp / 8;  // of 8 keys, that one ballot is about
#pragma unroll
    for (int first = 0; first < n; first += kTiles) {
      const uint32_t hidden = ballot(hides(b, key0 + first * 8 + lane_index())) >> lane_index() % 4 * 2;
#pragma unroll
      for (int i = 0; i < kTiles && first + i < n; ++i)
#pragma unroll
        for (int c = 0; c < 2; ++c)
          if (hidden >> (i * 8 + c) & 1) s[first + i][c] = s[first + i][c + 2] = -INFINITY;
    }
  }
};
inline Mask mask_of(const TensorView& padding, const TensorView& q, const TensorView& k, bool causal) {
  const int queries = static_cast<int>(q.sizes[1]), keys = static_cast<int>(k.sizes[1]);
  if (!padding.defined()) return {nullptr, 0, 0, queries, keys, causal};
  return {padding.ptr<const bool>(), padding.strides[0], padding.strides[1], queries, keys, causal};
}

// Reductions over the 4 lanes that share a row.
VA_DEVICE float quad_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}
VA_DEVICE float quad_max(float x) {
  x = fmaxf(x, shuffle_xor(x, 1));
  return fmaxf(x, shuffle_xor(x, 2));
}

// Blocks that share the rows of a (batch, head): where the other side's rows stay in shared memory as few as
// fill the GPU, else one for every kBlockRows.
inline int splits_for(int64_t items, int rows, bool resident) {
  const int rounds = (rows + kBlockRows - 1) / kBlockRows;
  if (!resident) return rounds;
  return static_cast<int>(std::min<int64_t>((2 * multiprocessors() + items - 1) / items, rounds));
}

}  // namespace va::attention_mma
