// SPDX-License-Identifier: Apache-2.0
// How attention is cut into blocks of queries and keys, how a block's operands are packed, and the products
// of one block with another. Included only by attention_cpu.cpp.
#pragma once
#include <algorithm>
#include <cmath>

#include "core/scratch.h"
#include "core/tensor_view.h"
#include "kernels/common/gemm_tile.h"

namespace va::VA_ISA {
namespace {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Up to so many queries read keys and values where they lie: packing would cost more than it saves.
constexpr int64_t kInPlaceQueries = 2;
constexpr int64_t kBlockElements = 40960;  // of packed keys: with values and scores they stay in the L2 cache
constexpr int64_t kMostKeys = 1024;        // in a block
constexpr int64_t kMostQueries = 48;       // in a block; twice as many if each has to pack all keys again

// A row of `vecs` vectors is cut into panels of equal width, the last may be narrower.
inline int64_t panel_vecs(int64_t vecs) { return ceil_div(vecs, ceil_div(vecs, kTileVecs)); }

// Depends on the shape of one image only, so that its result does not change with the batch.
struct Plan {
  int64_t heads, queries, keys, dim;
  int64_t key_blocks, block_keys;
  int64_t query_blocks, block_queries;  // block_queries is a multiple of kTileRows
  int64_t dim_padded;                   // to whole vectors
  int64_t score_stride;          // whole cache lines, an odd number: columns spread over the sets of a cache
  int64_t key_panel, dim_panel;  // vectors in a panel
  int64_t offset;                // query i sees the keys j <= i + offset
};

template <class C>
Plan make_plan(const TensorView& q, const TensorView& k, bool causal) {
  constexpr int64_t kLine = 64 / sizeof(C), L = kLanes<C>;
  Plan p;
  p.queries = q.sizes[1], p.keys = k.sizes[1], p.heads = q.sizes[2], p.dim = q.sizes[3];
  // Sizes of 0 count as 1 below: there is always one block.
  const int64_t queries = std::max<int64_t>(1, p.queries), keys = std::max<int64_t>(1, p.keys);
  p.dim_padded = round_up(std::max<int64_t>(1, p.dim), L);
  p.key_blocks = ceil_div(keys, std::min(kMostKeys, kBlockElements / p.dim_padded));
  p.block_keys = ceil_div(keys, p.key_blocks);
  p.key_blocks = ceil_div(keys, p.block_keys);
  const int64_t most_queries = p.key_blocks == 1 ? kMostQueries : 2 * kMostQueries;
  p.block_queries = round_up(ceil_div(queries, ceil_div(queries, most_queries)), kTileRows);
  p.query_blocks = ceil_div(queries, p.block_queries);
  p.score_stride = (ceil_div(round_up(p.block_keys, kTileRows), kLine) | 1) * kLine;
  p.key_panel = panel_vecs(ceil_div(p.block_keys, L));
  p.dim_panel = panel_vecs(p.dim_padded / L);
  p.offset = causal ? p.keys - p.queries : p.keys;
  return p;
}

// One block of queries against one block of keys.
struct Block {
  int64_t query0, queries, key0, keys, offset;

  // How many keys of the block the query sees; how many any query of the tile that starts at `query` sees.
  int64_t seen(int64_t query) const {
    return std::clamp<int64_t>(query0 + query + offset + 1 - key0, 0, keys);
  }
  int64_t seen_by_tile(int64_t query) const { return seen(std::min(query + kTileRows, queries) - 1); }
  // The first query that sees the key.
  int64_t first_query(int64_t key) const {
    return std::clamp<int64_t>(key0 + key - offset - query0, 0, queries);
  }
};

// Hands out pieces of the thread's scratch; with a null base it only counts.
struct Arena {
  char* base;
  size_t used = 0;

  template <class C>
  C* take(int64_t n) {
    C* const p = reinterpret_cast<C*>(base + used);
    used += static_cast<size_t>(round_up(n * static_cast<int64_t>(sizeof(C)), 64));
    return p;
  }
};

// The buffers of one thread: a few hundred KiB, about 1.5 MiB at most in f32.
template <class C>
struct Buffers {
  C *q, *scores, *keys_t, *hidden;                           // both passes
  C *values, *y, *top, *total;                               // forward
  C *values_t, *keys, *dy, *dscores, *delta, *dq, *dk, *dv;  // backward

  Buffers(const Plan& p, bool backward) {
    Arena count{nullptr};
    lay_out(count, p, backward);
    Arena arena{static_cast<char*>(thread_scratch(count.used))};
    lay_out(arena, p, backward);
  }

 private:
  void lay_out(Arena& a, const Plan& p, bool backward) {
    const int64_t query_rows = p.block_queries * p.dim_padded;
    const int64_t key_rows = round_up(p.block_keys, kTileRows) * p.dim_padded;
    const int64_t key_columns = round_up(p.block_keys, p.key_panel * kLanes<C>);
    q = a.take<C>(query_rows);
    scores = a.take<C>(p.block_queries * p.score_stride);
    keys_t = a.take<C>(key_columns * p.dim);
    hidden = a.take<C>(key_columns);
    if (!backward) {
      values = a.take<C>(key_rows);
      y = a.take<C>(query_rows);
      top = a.take<C>(round_up(p.block_queries, kLanes<C>));
      total = a.take<C>(round_up(p.block_queries, kLanes<C>));
      return;
    }
    values_t = a.take<C>(key_columns * p.dim);
    keys = a.take<C>(key_rows);
    dy = a.take<C>(query_rows);
    dscores = a.take<C>(p.block_queries * p.score_stride);
    delta = a.take<C>(p.block_queries);
    dq = a.take<C>(query_rows);
    dk = a.take<C>(key_rows);
    dv = a.take<C>(key_rows);
  }
};

// Packing ------------------------------------------------------------------------------------------------

template <class C>
void clear(C* p, int64_t n) {
  std::memset(p, 0, static_cast<size_t>(n) * sizeof(C));
}

// The next head of a token lies behind this one in nearly every layout: it will be wanted soon, and its lines
// are too far apart for the hardware to guess.
template <class T>
VA_INLINE void prefetch_next_head(const T* head, int64_t dim) {
  for (int64_t i = 0; i < dim; i += 64 / sizeof(T)) __builtin_prefetch(head + dim + i, 0, 2);
}

// dst[row] = factor * src[row], with zeros up to dim_padded.
template <class T, class C>
void copy_rows(C* dst, const Plan& p, const T* src, int64_t stride, int64_t rows, C factor) {
  for (int64_t r = 0; r < rows; ++r) {
    prefetch_next_head(src + r * stride, p.dim);
    for_lanes<C>(p.dim, [&](int64_t i, auto n) {
      store(dst + r * p.dim_padded + i, load_n(src + r * stride + i, n) * factor);
    });
  }
}

// dst[panel][i][key of the panel] = src[key][i], with zeros for the keys that fill up the last vector.
template <class T, class C>
void pack_keys(C* dst, const Plan& p, const T* src, int64_t stride, int64_t keys) {
  constexpr int L = kLanes<C>;
  const int64_t width = p.key_panel * L;
  for (int64_t key = 0; key < keys; key += L) {
    C* const out = dst + key / width * width * p.dim + key % width;
    for (int64_t r = key; r < std::min(key + L, keys); ++r) prefetch_next_head(src + r * stride, p.dim);
    for_lanes<C>(p.dim, [&](int64_t i, auto n) {
      Vec<C> x[L];
      VA_UNROLL
      for (int r = 0; r < L; ++r) x[r] = key + r < keys ? load_n(src + (key + r) * stride + i, n) : Vec<C>{};
      transpose_step<1>(x, std::make_index_sequence<L>());
      VA_UNROLL
      for (int j = 0; j < L; ++j)
        if (j < n) store(out + (i + j) * width, x[j]);
    });
  }
}

// hidden[j] = -inf for the keys that nobody may see, else 0. Null without key padding.
template <class C>
const C* hide_keys(C* hidden, const TensorView& key_padding, int64_t batch, int64_t key0, int64_t keys) {
  if (!key_padding.defined()) return nullptr;
  const bool* const p = key_padding.ptr<bool>() + batch * key_padding.strides[0];
  for (int64_t j = 0; j < round_up(keys, kLanes<C>); ++j)
    hidden[j] = j < keys && p[(key0 + j) * key_padding.strides[1]] ? static_cast<C>(-INFINITY) : C(0);
  return hidden;
}

// Products -----------------------------------------------------------------------------------------------
// An element is one chain of multiply-adds over a block; the sums of several blocks are added in order.

// out[query][key] = rows[query] . keys_t[.][key], for the keys that a query may see.
template <class C>
void score_tiles(const Plan& p, const Block& b, C* out, const C* rows, const C* keys_t) {
  const int64_t width = p.key_panel * kLanes<C>;
  for (int64_t key = 0; key < b.keys; key += width)
    for (int64_t i = 0; i < b.queries; i += kTileRows) {
      const int64_t columns = std::min(width, b.seen_by_tile(i) - key);
      if (columns <= 0) continue;
      const C* const panel = keys_t + key * p.dim;
      micro_kernel_for<C>(std::min<int64_t>(kTileRows, b.queries - i), columns)(
          p.dim, {rows + i * p.dim_padded, p.dim_padded, 1}, panel, width, out + i * p.score_stride + key,
          p.score_stride, false, panel);
    }
}

// out[query] += weights[query] . rows, over the keys that a query may see.
template <class C>
void sum_over_keys(const Plan& p, const Block& b, C* out, const C* weights, const C* rows) {
  const int64_t width = p.dim_panel * kLanes<C>;
  for (int64_t c = 0; c < p.dim_padded; c += width)
    for (int64_t i = 0; i < b.queries; i += kTileRows)
      micro_kernel_for<C>(std::min<int64_t>(kTileRows, b.queries - i), std::min(width, p.dim_padded - c))(
          b.seen_by_tile(i), {weights + i * p.score_stride, p.score_stride, 1}, rows + c, p.dim_padded,
          out + i * p.dim_padded + c, p.dim_padded, true, rows + c);
}

// out[key] += sum over queries of weights[query][key] rows[query].
template <class C>
void sum_over_queries(const Plan& p, const Block& b, C* out, const C* weights, const C* rows) {
  const int64_t width = p.dim_panel * kLanes<C>;
  for (int64_t c = 0; c < p.dim_padded; c += width)
    for (int64_t j = 0; j < b.keys; j += kTileRows) {
      const int64_t first = b.first_query(j);
      micro_kernel_for<C>(std::min<int64_t>(kTileRows, b.keys - j), std::min(width, p.dim_padded - c))(
          b.queries - first, {weights + first * p.score_stride + j, 1, p.score_stride},
          rows + first * p.dim_padded + c, p.dim_padded, out + j * p.dim_padded + c, p.dim_padded, true,
          rows + c);
    }
}

// score_tiles for few queries, from keys where they lie. A vector of keys at a time: one vector of partial
// sums for each key, then the lanes of all are summed by a transposition.
template <class T, class C>
void score_in_place(const Plan& p, const Block& b, C* out, const C* rows, const T* keys, int64_t stride) {
  constexpr int L = kLanes<C>;
  for (int64_t i = 0; i < b.queries; ++i)
    for (int64_t key = 0; key < b.seen(i); key += L) {
      Vec<C> x[L] = {};
      for_lanes<C>(p.dim, [&](int64_t c, auto n) {
        const Vec<C> q = load(rows + i * p.dim_padded + c);
        VA_UNROLL
        for (int r = 0; r < L; ++r)
          x[r] = fmadd(q, load_n(keys + std::min(key + r, b.keys - 1) * stride + c, n), x[r]);
      });
      transpose_step<1>(x, std::make_index_sequence<L>());
      VA_UNROLL
      for (int step = L / 2; step > 0; step /= 2)
        for (int r = 0; r < step; ++r) x[r] += x[r + step];
      store(out + i * p.score_stride + key, x[0]);
    }
}

// sum_over_keys for few queries, from values where they lie.
template <class T, class C>
void sum_in_place(const Plan& p, const Block& b, C* out, const C* weights, const T* values, int64_t stride) {
  constexpr int kStep = 4;  // keys summed in registers
  for (int64_t i = 0; i < b.queries; ++i) {
    const C* const w = weights + i * p.score_stride;
    const int64_t seen = b.seen(i);
    int64_t key = 0;
    const auto add = [&](auto count) {
      for_lanes<C>(p.dim, [&](int64_t c, auto n) {
        C* const o = out + i * p.dim_padded + c;
        Vec<C> sum = load(o);
        VA_UNROLL
        for (int r = 0; r < count; ++r)
          sum = fmadd(splat(w[key + r]), load_n(values + (key + r) * stride + c, n), sum);
        store(o, sum);
      });
      key += count;
    };
    while (key + kStep <= seen) add(std::integral_constant<int, kStep>{});
    while (key < seen) add(std::integral_constant<int, 1>{});
  }
}

}  // namespace
}  // namespace va::VA_ISA
