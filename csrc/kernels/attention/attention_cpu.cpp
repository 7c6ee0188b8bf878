// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention.h"

#include <algorithm>
#include <cmath>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "kernels/attention/attention_plan.h"
#include "kernels/attention/attention_tile.h"
#include "kernels/common/math.h"

namespace va {
namespace VA_ISA {
namespace {

constexpr int64_t kGrainMultiplies = 65536;  // below this a second thread costs more than it brings

template <class C>
constexpr C kInfinity = static_cast<C>(INFINITY);

template <class T>
T* head_of(const TensorView& x, int64_t batch, int64_t token, int64_t head) {
  return x.ptr<T>() + batch * x.strides[0] + token * x.strides[1] + head * x.strides[2];
}
template <class C>
void clear(C* p, int64_t n) {
  std::memset(p, 0, static_cast<size_t>(n) * sizeof(C));
}

// hidden[j] = -inf for the keys that are not to be seen, else 0. Null without key padding.
template <class C>
const C* hide_keys(C* hidden, const TensorView& key_padding, int64_t batch, int64_t key0, int64_t keys) {
  if (!key_padding.defined()) return nullptr;
  const bool* p = key_padding.ptr<bool>() + batch * key_padding.strides[0];
  for (int64_t j = 0; j < keys; ++j)
    hidden[j] = p[(key0 + j) * key_padding.strides[1]] ? -kInfinity<C> : C(0);
  for (int64_t j = keys; j % kLanes<C>; ++j) hidden[j] = 0;
  return hidden;
}

// out[query][key] = rows[query] . columns[key], for the keys that a query may see.
template <class C>
void score_tiles(const Plan& p, const Block& b, C* out, const C* rows, const C* columns) {
  constexpr int L = kLanes<C>;
  const int64_t width = p.panel * L;
  for (int64_t key = 0; key < b.keys; key += width)
    for (int64_t i = 0; i < b.queries; i += kTileRows)
      tile<false>(std::min(p.panel, ceil_div(b.seen_by_tile(i) - key, L)), out + i * p.score_stride + key,
                  p.score_stride, rows + i * p.dim_padded, p.dim_padded, 1, columns + key * p.dim, width,
                  p.dim);
}

// out[query] += weights[query] . rows, over the keys that a query may see.
template <class C>
void sum_over_keys(const Plan& p, const Block& b, C* out, const C* weights, const C* rows) {
  const int64_t vecs = p.dim_padded / kLanes<C>, step = panel_vecs(vecs);
  for (int64_t c = 0; c < vecs; c += step)
    for (int64_t i = 0; i < b.queries; i += kTileRows) {
      const int64_t at = c * kLanes<C>;
      tile<true>(std::min(step, vecs - c), out + i * p.dim_padded + at, p.dim_padded,
                 weights + i * p.score_stride, p.score_stride, 1, rows + at, p.dim_padded, b.seen_by_tile(i));
    }
}

// out[key] += sum over queries of weights[query][key] rows[query].
template <class C>
void sum_over_queries(const Plan& p, const Block& b, C* out, const C* weights, const C* rows) {
  const int64_t vecs = p.dim_padded / kLanes<C>, step = panel_vecs(vecs);
  for (int64_t c = 0; c < vecs; c += step)
    for (int64_t j = 0; j < b.keys; j += kTileRows) {
      const int64_t at = c * kLanes<C>, first = b.first_query(j);
      tile<true>(std::min(step, vecs - c), out + j * p.dim_padded + at, p.dim_padded,
                 weights + first * p.score_stride + j, 1, p.score_stride, rows + first * p.dim_padded + at,
                 p.dim_padded, b.queries - first);
    }
}

// The lanes of the vector at `i` that lie before n.
template <class C>
VA_INLINE auto lanes_before(int64_t i, int64_t n) {
  Vec<C> lane;
  for (int j = 0; j < kLanes<C>; ++j) lane[j] = static_cast<C>(j);
  return lane < static_cast<C>(n - i);
}

// One row of scores becomes exp(score - top), zeros from `seen` to `end`; top and total are of all keys so
// far. Returns the factor that what was summed before has to be scaled by.
template <class C>
C softmax_row(C* s, const C* hidden, int64_t seen, int64_t end, C& top, C& total) {
  constexpr int L = kLanes<C>;
  // Maximum.
  Vec<C> most = splat(-kInfinity<C>);
  for (int64_t j = 0; j < seen; j += L) {
    Vec<C> v = load(s + j);
    if (hidden) v += load(hidden + j);
    if (j + L > seen) v = lanes_before<C>(j, seen) ? v : splat(-kInfinity<C>);
    if (hidden || j + L > seen) store(s + j, v);
    most = vmax(v, most);
  }
  const C before = top;
  top = std::max(top, reduce_max(most));
  const C base = top == -kInfinity<C> ? C(0) : top;  // no key seen so far: every exp below is exp(-inf)
  // Exponentials and their sum.
  Vec<C> sum{};
  int64_t j = 0;
  for (; j < seen; j += L) {
    const Vec<C> e = vexp(load(s + j) - base);
    store(s + j, e);
    sum += e;
  }
  for (; j < end; j += L) store(s + j, Vec<C>{});
  const C factor = before == top ? C(1) : std::exp(before - base);
  total = total * factor + reduce_add(sum);
  return factor;
}

// Queries [query0, query0 + n) of one head; `packed` is the block of keys that the buffers hold.
template <class T, class C>
void forward_block(const AttentionForward& a, const Plan& p, const Buffers<C>& w, int64_t head_index,
                   int64_t query0, int64_t& packed) {
  const int64_t batch = head_index / p.heads, head = head_index % p.heads;
  const int64_t n = std::min(p.block_queries, p.queries - query0);
  pack_rows(w.q, head_of<T>(a.q, batch, query0, head), a.q.strides[1], n, p.block_queries, p.dim,
            static_cast<C>(a.scale));
  for (int64_t i = 0; i < n; ++i) w.top[i] = -kInfinity<C>, w.total[i] = 0;
  clear(w.o, p.block_queries * p.dim_padded);
  for (int64_t kb = 0; kb < p.key_blocks; ++kb) {
    const int64_t key0 = kb * p.block_keys;
    const Block b{query0, n, key0, std::min(p.block_keys, p.keys - key0), p.offset};
    if (b.seen(n - 1) == 0) break;
    if (packed != head_index * p.key_blocks + kb) {
      packed = head_index * p.key_blocks + kb;
      pack_columns(w.keys_t, head_of<T>(a.k, batch, key0, head), a.k.strides[1], b.keys, p.dim, p.panel);
      pack_rows(w.values, head_of<T>(a.v, batch, key0, head), a.v.strides[1], b.keys, b.keys, p.dim, C(1));
    }
    const C* const hidden = hide_keys(w.hidden, a.key_padding, batch, key0, b.keys);
    // S = Q K^T.
    score_tiles(p, b, w.scores, w.q, w.keys_t);
    // P = exp(S - max).
    for (int64_t i = 0; i < n; ++i) {
      const C factor = softmax_row(w.scores + i * p.score_stride, hidden, b.seen(i),
                                   b.seen_by_tile(i / kTileRows * kTileRows), w.top[i], w.total[i]);
      if (factor == 1 || kb == 0) continue;
      C* const o = w.o + i * p.dim_padded;
      for (int64_t c = 0; c < p.dim_padded; c += kLanes<C>) store(o + c, load(o + c) * factor);
    }
    // O += P V.
    sum_over_keys(p, b, w.o, w.scores, w.values);
  }
  C* const lse = a.lse.ptr<C>() + head_index * p.queries + query0;
  for (int64_t i = 0; i < n; ++i) {
    const bool none = w.total[i] == 0;
    const C inverse = none ? C(0) : C(1) / w.total[i];
    T* const y = head_of<T>(a.y, batch, query0 + i, head);
    for_lanes<C>(p.dim,
                 [&](int64_t c, auto m) { store_n(y + c, load(w.o + i * p.dim_padded + c) * inverse, m); });
    lse[i] = none ? kInfinity<C> : w.top[i] + std::log(w.total[i]);
  }
}

template <class T, class C = compute_t<T>>
void forward(const AttentionForward& a) {
  const Plan p = make_plan<C>(a.q, a.k, a.causal);
  const int64_t work = p.block_queries * p.keys * p.dim + 1;
  parallel_for(a.q.sizes[0] * p.heads * p.query_blocks, kGrainMultiplies / work + 1,
               [&](int64_t begin, int64_t end) {
                 const Buffers<C> buffers(p, false);
                 int64_t packed = -1;
                 for (int64_t item = begin; item < end; ++item)
                   forward_block<T, C>(a, p, buffers, item / p.query_blocks,
                                       item % p.query_blocks * p.block_queries, packed);
               });
}

// From S and dP: P = exp(S - lse) and dS = P (dP - delta), zeros where the query sees no key.
template <class C>
void backward_row(C* s, C* ds, const C* hidden, int64_t seen, int64_t end, C lse, C delta) {
  constexpr int L = kLanes<C>;
  int64_t j = 0;
  for (; j < seen; j += L) {
    Vec<C> v = load(s + j);
    if (hidden) v += load(hidden + j);
    Vec<C> prob = vexp(v - lse);
    Vec<C> d = prob * (load(ds + j) - delta);
    if (j + L > seen) {
      const auto valid = lanes_before<C>(j, seen);
      prob = valid ? prob : Vec<C>{};
      d = valid ? d : Vec<C>{};
    }
    store(s + j, prob);
    store(ds + j, d);
  }
  for (; j < end; j += L) store(s + j, Vec<C>{}), store(ds + j, Vec<C>{});
}

template <class T, class C>
void write_rows(const TensorView& out, int64_t batch, int64_t token0, int64_t head, const C* rows, int64_t n,
                int64_t dim, C factor) {
  const int64_t ld = round_up(dim, kLanes<C>);
  for (int64_t i = 0; i < n; ++i) {
    T* const y = head_of<T>(out, batch, token0 + i, head);
    for_lanes<C>(dim, [&](int64_t c, auto m) { store_n(y + c, load(rows + i * ld + c) * factor, m); });
  }
}

struct Range {
  int64_t begin, end;
};

// Gradients of one head: dq of some blocks of queries (then the keys must be all), dk and dv of some blocks
// of keys (then the queries must be all). One of the two ranges has to be a single block.
template <class T, class C>
void backward_blocks(const AttentionBackward& a, const Plan& p, const Buffers<C>& w, int64_t head_index,
                     Range query_range, Range key_range, bool want_dq, bool want_dkv) {
  const int64_t batch = head_index / p.heads, head = head_index % p.heads;
  for (int64_t kb = key_range.begin; kb < key_range.end; ++kb) {
    const int64_t key0 = kb * p.block_keys, keys = std::min(p.block_keys, p.keys - key0);
    const T* const k = head_of<T>(a.k, batch, key0, head);
    pack_columns(w.keys_t, k, a.k.strides[1], keys, p.dim, p.panel);
    pack_columns(w.values_t, head_of<T>(a.v, batch, key0, head), a.v.strides[1], keys, p.dim, p.panel);
    if (want_dq) pack_rows(w.keys, k, a.k.strides[1], keys, keys, p.dim, C(1));
    const C* const hidden = hide_keys(w.hidden, a.key_padding, batch, key0, keys);
    if (want_dkv)
      clear(w.dk, round_up(keys, kTileRows) * p.dim_padded),
          clear(w.dv, round_up(keys, kTileRows) * p.dim_padded);
    for (int64_t qb = query_range.begin; qb < query_range.end; ++qb) {
      const int64_t query0 = qb * p.block_queries, n = std::min(p.block_queries, p.queries - query0);
      const Block b{query0, n, key0, keys, p.offset};
      const T* const y = head_of<T>(a.y, batch, query0, head);
      const T* const dy = head_of<T>(a.dy, batch, query0, head);
      const C* const lse = a.lse.ptr<C>() + head_index * p.queries + query0;
      if (kb == key_range.begin || want_dkv) {
        pack_rows(w.q, head_of<T>(a.q, batch, query0, head), a.q.strides[1], n, p.block_queries, p.dim,
                  static_cast<C>(a.scale));
        pack_rows(w.dy, dy, a.dy.strides[1], n, p.block_queries, p.dim, C(1));
        // delta = dy . y, which is the sum of P dP over the keys.
        for (int64_t i = 0; i < n; ++i) {
          Vec<C> sum{};
          for_lanes<C>(p.dim, [&](int64_t c, auto m) {
            sum += load(w.dy + i * p.dim_padded + c) * load_n(y + i * a.y.strides[1] + c, m);
          });
          w.delta[i] = reduce_add(sum);
        }
      }
      if (want_dq && kb == key_range.begin) clear(w.dq, p.block_queries * p.dim_padded);
      if (b.seen(n - 1) > 0) {
        // S = Q K^T, dP = dY V^T.
        score_tiles(p, b, w.scores, w.q, w.keys_t);
        score_tiles(p, b, w.dscores, w.dy, w.values_t);
        for (int64_t i = 0; i < n; ++i)
          backward_row(w.scores + i * p.score_stride, w.dscores + i * p.score_stride, hidden, b.seen(i),
                       p.score_stride, lse[i], w.delta[i]);
        // dQ += dS K, dK += dS^T Q, dV += P^T dY.
        if (want_dq) sum_over_keys(p, b, w.dq, w.dscores, w.keys);
        if (want_dkv) {
          sum_over_queries(p, b, w.dk, w.dscores, w.q);
          sum_over_queries(p, b, w.dv, w.scores, w.dy);
        }
      }
      if (want_dq && kb == key_range.end - 1)
        write_rows<T>(a.dq, batch, query0, head, w.dq, n, p.dim, static_cast<C>(a.scale));
    }
    if (want_dkv) {
      write_rows<T>(a.dk, batch, key0, head, w.dk, keys, p.dim, C(1));  // q was packed with the scale
      write_rows<T>(a.dv, batch, key0, head, w.dv, keys, p.dim, C(1));
    }
  }
}

// Where a head's keys fit in one block, a head is one task with five products. Otherwise dq and (dk, dv) are
// two passes over blocks, with seven products but without sums that tasks would have to share.
template <class T, class C = compute_t<T>>
void backward(const AttentionBackward& a) {
  const Plan p = make_plan<C>(a.q, a.k, a.causal);
  const int64_t heads = a.q.sizes[0] * p.heads;
  const Range all_queries{0, p.query_blocks}, all_keys{0, p.key_blocks};
  const auto run = [&](int64_t tasks, auto&& task) {
    const int64_t work = heads * p.queries * p.keys * p.dim / tasks + 1;
    parallel_for(tasks, kGrainMultiplies / work + 1, [&](int64_t begin, int64_t end) {
      const Buffers<C> buffers(p, true);
      for (int64_t i = begin; i < end; ++i) task(buffers, i);
    });
  };
  if (p.key_blocks == 1) {
    return run(heads, [&](const Buffers<C>& w, int64_t i) {
      backward_blocks<T, C>(a, p, w, i, all_queries, all_keys, true, true);
    });
  }
  run(heads * p.query_blocks, [&](const Buffers<C>& w, int64_t i) {
    const int64_t qb = i % p.query_blocks;
    backward_blocks<T, C>(a, p, w, i / p.query_blocks, {qb, qb + 1}, all_keys, true, false);
  });
  run(heads * p.key_blocks, [&](const Buffers<C>& w, int64_t i) {
    const int64_t kb = i % p.key_blocks;
    backward_blocks<T, C>(a, p, w, i / p.key_blocks, all_queries, {kb, kb + 1}, false, true);
  });
}

}  // namespace
}  // namespace VA_ISA

namespace cpu {

template <>
void attention_forward<kIsa>(const AttentionForward& a) {
  dispatch_float(a.q.dtype, "attention: q", [&](auto t) { VA_ISA::forward<typename decltype(t)::type>(a); });
}

template <>
void attention_backward<kIsa>(const AttentionBackward& a) {
  dispatch_float(a.q.dtype, "attention: q", [&](auto t) { VA_ISA::backward<typename decltype(t)::type>(a); });
}

}  // namespace cpu
}  // namespace va
