// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention.h"

#include "core/dispatch.h"
#include "core/parallel.h"
#include "kernels/attention/attention_blocks.h"
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

// factor * rows, into the output's layout and type.
template <class T, class C>
void write_rows(const Plan& p, T* out, int64_t stride, const C* rows, int64_t n, C factor) {
  for (int64_t i = 0; i < n; ++i)
    for_lanes<C>(p.dim, [&](int64_t c, auto m) {
      store_n(out + i * stride + c, load(rows + i * p.dim_padded + c) * factor, m);
    });
}

// The lanes of the vector at `i` that lie before n.
template <class C>
VA_INLINE auto lanes_before(int64_t i, int64_t n) {
  Vec<C> lane;
  for (int j = 0; j < kLanes<C>; ++j) lane[j] = static_cast<C>(j);
  return lane < static_cast<C>(n - i);
}

// One row of scores becomes exp(score - top), with zeros from `seen` to `end`. top and total are of all keys
// so far. Returns the factor that what was summed up before has to be scaled by.
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
  const C factor = before == top ? C(1) : before == -kInfinity<C> ? C(0) : std::exp(before - top);
  total = total * factor + reduce_add(sum);
  return factor;
}

// One block of queries of one head. `packed` says which block of keys the buffers hold.
template <class T, class C>
void forward_block(const AttentionForward& a, const Plan& p, const Buffers<C>& w, int64_t head_index,
                   int64_t query0, int64_t& packed) {
  const int64_t batch = head_index / p.heads, head = head_index % p.heads;
  const int64_t n = std::min(p.block_queries, p.queries - query0);
  const bool in_place = p.queries <= kInPlaceQueries;
  copy_rows(w.q, p, head_of<T>(a.q, batch, query0, head), a.q.strides[1], n, static_cast<C>(a.scale));
  for (int64_t i = 0; i < p.block_queries; ++i) w.top[i] = -kInfinity<C>, w.total[i] = 0;
  clear(w.y, n * p.dim_padded);
  for (int64_t kb = 0; kb < p.key_blocks; ++kb) {
    const int64_t key0 = kb * p.block_keys;
    const Block b{query0, n, key0, std::min(p.block_keys, p.keys - key0), p.offset};
    if (b.seen(n - 1) == 0) break;
    const T* const k = head_of<T>(a.k, batch, key0, head);
    const T* const v = head_of<T>(a.v, batch, key0, head);
    if (!in_place && packed != head_index * p.key_blocks + kb) {
      packed = head_index * p.key_blocks + kb;
      pack_keys(w.keys_t, p, k, a.k.strides[1], b.keys);
      copy_rows(w.values, p, v, a.v.strides[1], b.keys, C(1));
    }
    const C* const hidden = hide_keys(w.hidden, a.key_padding, batch, key0, b.keys);
    // S = Q K^T.
    if (in_place)
      score_in_place(p, b, w.scores, w.q, k, a.k.strides[1]);
    else
      score_tiles(p, b, w.scores, w.q, w.keys_t);
    // P = exp(S - max).
    for (int64_t i = 0; i < n; ++i) {
      const C factor = softmax_row(w.scores + i * p.score_stride, hidden, b.seen(i),
                                   b.seen_by_tile(i / kTileRows * kTileRows), w.top[i], w.total[i]);
      if (factor == 1 || kb == 0) continue;
      C* const y = w.y + i * p.dim_padded;
      for (int64_t c = 0; c < p.dim_padded; c += kLanes<C>) store(y + c, load(y + c) * factor);
    }
    // Y += P V.
    if (in_place)
      sum_in_place(p, b, w.y, w.scores, v, a.v.strides[1]);
    else
      sum_over_keys(p, b, w.y, w.scores, w.values);
  }
  // Y / sum(P), and the log of the sum.
  C* const lse = a.lse.ptr<C>() + head_index * p.queries + query0;
  for_lanes<C>(n, [&](int64_t i, auto m) {
    const Vec<C> total = load(w.total + i);
    const auto none = total == C(0);
    store_n(lse + i, none ? splat(kInfinity<C>) : load(w.top + i) + vlog(total), m);
    store(w.total + i, none ? Vec<C>{} : C(1) / total);
  });
  T* const y = head_of<T>(a.y, batch, query0, head);
  for (int64_t i = 0; i < n; ++i)
    write_rows(p, y + i * a.y.strides[1], 0, w.y + i * p.dim_padded, 1, w.total[i]);
}

template <class T, class C = compute_t<T>>
void forward(const AttentionForward& a) {
  const Plan p = make_plan<C>(a.q, a.k, a.causal);
  const int64_t work = std::min(p.block_queries, p.queries) * p.keys * p.dim + 1;
  parallel_for(a.q.sizes[0] * p.heads * p.query_blocks, kGrainMultiplies / work + 1,
               [&](int64_t begin, int64_t end) {
                 const Buffers<C> buffers(p, false);
                 int64_t packed = -1;
                 for (int64_t i = begin; i < end; ++i)
                   forward_block<T, C>(a, p, buffers, i / p.query_blocks,
                                       i % p.query_blocks * p.block_queries, packed);
               });
}

// From S and dP: P = exp(S - lse) and dS = P (dP - delta), zeros from `seen` to `end`.
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
    pack_keys(w.keys_t, p, k, a.k.strides[1], keys);
    pack_keys(w.values_t, p, head_of<T>(a.v, batch, key0, head), a.v.strides[1], keys);
    if (want_dq) copy_rows(w.keys, p, k, a.k.strides[1], keys, C(1));
    const C* const hidden = hide_keys(w.hidden, a.key_padding, batch, key0, keys);
    if (want_dkv) clear(w.dk, keys * p.dim_padded), clear(w.dv, keys * p.dim_padded);
    for (int64_t qb = query_range.begin; qb < query_range.end; ++qb) {
      const int64_t query0 = qb * p.block_queries, n = std::min(p.block_queries, p.queries - query0);
      const Block b{query0, n, key0, keys, p.offset};
      const C* const lse = a.lse.ptr<C>() + head_index * p.queries + query0;
      if (kb == key_range.begin || want_dkv) {
        const T* const y = head_of<T>(a.y, batch, query0, head);
        copy_rows(w.q, p, head_of<T>(a.q, batch, query0, head), a.q.strides[1], n, static_cast<C>(a.scale));
        copy_rows(w.dy, p, head_of<T>(a.dy, batch, query0, head), a.dy.strides[1], n, C(1));
        // delta = dy . y, which is the sum of P dP over the keys.
        for (int64_t i = 0; i < n; ++i) {
          Vec<C> sum{};
          for_lanes<C>(p.dim, [&](int64_t c, auto m) {
            sum += load(w.dy + i * p.dim_padded + c) * load_n(y + i * a.y.strides[1] + c, m);
          });
          w.delta[i] = reduce_add(sum);
        }
      }
      if (want_dq && kb == key_range.begin) clear(w.dq, n * p.dim_padded);
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
      if (want_dq && kb == key_range.end - 1) {
        write_rows(p, head_of<T>(a.dq, batch, query0, head), a.dq.strides[1], w.dq, n,
                   static_cast<C>(a.scale));
      }
    }
    if (want_dkv) {  // the queries were packed with the scale
      write_rows(p, head_of<T>(a.dk, batch, key0, head), a.dk.strides[1], w.dk, keys, C(1));
      write_rows(p, head_of<T>(a.dv, batch, key0, head), a.dv.strides[1], w.dv, keys, C(1));
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
