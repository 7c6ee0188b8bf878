// SPDX-License-Identifier: Apache-2.0
// How attention's work is cut into blocks, and the buffers of one thread. Included only by attention_cpu.cpp.
#pragma once
#include <algorithm>

#include "core/scratch.h"
#include "core/tensor_view.h"
#include "kernels/attention/attention_tile.h"

namespace va::VA_ISA {
namespace {

// How the work is cut. Depends on the shape of one image only.
struct Plan {
  int64_t heads, queries, keys, dim, dim_padded;
  int64_t key_blocks, block_keys;       // keys packed at a time: they stay in the L2 cache
  int64_t query_blocks, block_queries;  // a multiple of kTileRows
  int64_t score_stride;  // an odd number of cache lines, so that columns spread over cache sets
  int64_t panel;         // vectors of keys in a packed panel
  int64_t offset;        // query i sees the keys j <= i + offset
};

template <class C>
Plan make_plan(const TensorView& q, const TensorView& k, bool causal) {
  constexpr int64_t kLine = 64 / sizeof(C);
  Plan p;
  p.queries = q.sizes[1], p.keys = k.sizes[1], p.heads = q.sizes[2], p.dim = q.sizes[3];
  p.dim_padded = round_up(p.dim, kLanes<C>);
  const int64_t most_keys = std::clamp<int64_t>(40960 / p.dim_padded, 64, 1024);
  p.key_blocks = std::max<int64_t>(1, ceil_div(p.keys, most_keys));
  p.block_keys = std::max<int64_t>(1, ceil_div(p.keys, p.key_blocks));
  const int64_t most_queries = p.key_blocks == 1 ? 48 : 96;
  p.query_blocks = std::max<int64_t>(1, ceil_div(p.queries, most_queries));
  p.block_queries = round_up(std::max<int64_t>(1, ceil_div(p.queries, p.query_blocks)), kTileRows);
  p.query_blocks = std::max<int64_t>(1, ceil_div(p.queries, p.block_queries));
  p.score_stride = round_up(round_up(p.block_keys, kTileRows), kLine) / kLine;
  p.score_stride = (p.score_stride | 1) * kLine;
  p.panel = panel_vecs(ceil_div(p.block_keys, kLanes<C>));
  p.offset = causal ? p.keys - p.queries : p.keys;
  return p;
}

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

// The buffers of one thread. Those of backward come last.
template <class C>
struct Buffers {
  C *keys_t, *hidden, *q, *scores;                           // both passes
  C *values, *o, *top, *total;                               // forward
  C *values_t, *keys, *dy, *dscores, *delta, *dq, *dk, *dv;  // backward

  Buffers(const Plan& p, bool backward) {
    Arena count{nullptr};
    lay_out(count, p, backward);
    Arena arena{static_cast<char*>(thread_scratch(count.used))};
    lay_out(arena, p, backward);
  }

 private:
  void lay_out(Arena& a, const Plan& p, bool backward) {
    const int64_t key_rows = round_up(p.block_keys, kTileRows);
    const int64_t columns = round_up(p.block_keys, p.panel * kLanes<C>);
    keys_t = a.take<C>(columns * p.dim);
    hidden = a.take<C>(columns);
    q = a.take<C>(p.block_queries * p.dim_padded);
    scores = a.take<C>(p.block_queries * p.score_stride);
    if (!backward) {
      values = a.take<C>(p.block_keys * p.dim_padded);
      o = a.take<C>(p.block_queries * p.dim_padded);
      top = a.take<C>(p.block_queries);
      total = a.take<C>(p.block_queries);
      return;
    }
    values_t = a.take<C>(columns * p.dim);
    keys = a.take<C>(p.block_keys * p.dim_padded);
    dy = a.take<C>(p.block_queries * p.dim_padded);
    dscores = a.take<C>(p.block_queries * p.score_stride);
    delta = a.take<C>(p.block_queries);
    dq = a.take<C>(p.block_queries * p.dim_padded);
    dk = a.take<C>(key_rows * p.dim_padded);
    dv = a.take<C>(key_rows * p.dim_padded);
  }
};

// One block of queries against one block of keys.
struct Block {
  int64_t query0, queries, key0, keys, offset;
  // How many keys of the block the query sees.
  int64_t seen(int64_t query) const {
    return std::clamp<int64_t>(query0 + query + offset + 1 - key0, 0, keys);
  }
  // The same for any query of the tile that starts at `query`.
  int64_t seen_by_tile(int64_t query) const { return seen(std::min(query + kTileRows, queries) - 1); }
  // The first query that sees the key.
  int64_t first_query(int64_t key) const {
    return std::clamp<int64_t>(key0 + key - offset - query0, 0, queries);
  }
};

}  // namespace
}  // namespace va::VA_ISA
