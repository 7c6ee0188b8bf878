// SPDX-License-Identifier: Apache-2.0
// Backward attention on tensor cores, deterministic without atomics: one kernel owns rows of dQ and loops
// over keys, another owns rows of dK and dV and loops over queries. Both recompute the probabilities from the
// log-sum-exp of the forward pass. With P = exp(scale Q K^T - lse), dP = dO V^T and delta = rowsum(dO * O):
//   dS = scale P (dP - delta);  dQ = dS K;  dK = dS^T Q;  dV = P^T dO.
#pragma once
#include <cmath>

#include "kernels/attention/attention_mma.cuh"

namespace va::attention_mma {

template <class Pair>
struct BackwardParams {
  using T = typename Pair::T;
  typename Pair::Source others;  // K and V for dQ, Q and dO for dK and dV
  Heads<const T> x0, x1, y;      // rows of this block: Q, dO and O, or K and V
  Heads<T> out0, out1;           // dQ, or dK and dV
  const float* lse;              // [B, H, N]
  float* delta;                  // [B, H, N], made by the kernel of dQ
  Mask mask;
  int heads, dim;
  int splits;  // blocks that share the rows of a (batch, head)
  float scale;
};

template <class T, int kD>
VA_DEVICE void row_dots(float (&sum)[2], const RowsOperand<T, kD>& x, const RowsOperand<T, kD>& y) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] = 0;
#pragma unroll
    for (int k = 0; k < kD / 16; ++k)
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        float u[2], v[2];
        unpack2<T>(u, x.a[k][side * 2 + half]);
        unpack2<T>(v, y.a[k][side * 2 + half]);
        sum[half] += u[0] * v[0] + u[1] * v[1];
      }
    sum[half] = quad_sum(sum[half]);
  }
}

// delta and dQ. The other side's rows are taken kStep at a time.
template <class Pair, int kStep>
VA_KERNEL(kThreads, 2)
dq_kernel(const VA_PARAMETER BackwardParams<Pair> p) {
  using T = typename Pair::T;
  constexpr int kD = Pair::kD, kKeys = Pair::kRows;
  Pair kv(p.others);
  const int g = lane_index() / 4, t = lane_index() % 4;
  const int b = block_x() / p.heads, h = block_x() % p.heads;
  const int queries = p.mask.queries;
  bool loaded = false;
  for (int row = block_y() * kBlockRows; row < queries; row += p.splits * kBlockRows) {
    const int first = row + warp_index() * kWarpRows;
    const bool active = first < queries;
    RowsOperand<T, kD> q, dy;
    float lse2[2] = {INFINITY, INFINITY}, delta[2];
    {
      RowsOperand<T, kD> y;
      y.load(p.y, b, h, first, queries, p.dim);
      dy.load(p.x1, b, h, first, queries, p.dim);
      row_dots(delta, dy, y);
    }
    q.load(p.x0, b, h, first, queries, p.dim);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = first + g + 8 * half;
      if (i >= queries) continue;
      const int64_t at = static_cast<int64_t>(block_x()) * queries + i;
      lse2[half] = p.lse[at] * kLog2e;
      if (t == 0) p.delta[at] = delta[half];
    }
    float dq[kD / 8][4] = {};
    const int seen = p.mask.limit_of_rows(row),
              chunks = Pair::kResident ? seen > 0 : (seen + kKeys - 1) / kKeys;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      if (!Pair::kResident || !loaded) kv.get(b, h, chunk, chunk == 0, chunk + 1 < chunks);
      loaded = true;
      if (Pair::kIdleWarpsSkip && !active) continue;
#pragma unroll 1
      for (int step = 0; step < kKeys; step += kStep) {
        const int key0 = chunk * kKeys + step;
        if (key0 >= seen) break;
        const int limit[2] = {p.mask.limit(first + g) - key0 - 2 * t,
                              p.mask.limit(first + g + 8) - key0 - 2 * t};
        float s[kStep / 8][4] = {}, dp[kStep / 8][4] = {};
        Pair::begin(s, dp);
        multiply_transposed(s, q, kv.x, step);
        multiply_transposed(dp, dy, kv.y, step);
        Pair::finish(s, dp);
        p.mask.hide(s, b, key0);
#pragma unroll
        for (int n = 0; n < kStep / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const bool sees = n * 8 + e % 2 < limit[e / 2];
            const float prob = sees ? fast_exp2(s[n][e] * (p.scale * kLog2e) - lse2[e / 2]) : 0.0f;
            s[n][e] = prob * (dp[n][e] - delta[e / 2]);
          }
        const RowsOperand<T, kStep> ds = packed<T>(s);
        Pair::begin(dq);
        multiply(dq, ds, kv.x, step);
        Pair::finish(dq);
      }
    }
    const float factor[2] = {p.scale, p.scale};
    store_rows<T, kD>(dq, factor, p.out0, b, h, first, queries, p.dim);
    if (!Pair::kResident) break;  // see splits_for
  }
}

// dK and dV. S and dP are computed transposed, keys as rows.
template <class Pair, int kStep>
VA_KERNEL(kThreads, 2)
dkv_kernel(const VA_PARAMETER BackwardParams<Pair> p) {
  using T = typename Pair::T;
  constexpr int kD = Pair::kD, kQueries = Pair::kRows;
  Pair others(p.others);
  const int g = lane_index() / 4, t = lane_index() % 4;
  const int b = block_x() / p.heads, h = block_x() % p.heads;
  const int queries = p.mask.queries, keys = p.mask.keys;
  const int chunks = Pair::kResident ? 1 : (queries + kQueries - 1) / kQueries;
  bool loaded = false;
  for (int row = block_y() * kBlockRows; row < keys; row += p.splits * kBlockRows) {
    const int first = row + warp_index() * kWarpRows;
    const bool active = first < keys;
    RowsOperand<T, kD> k, v;
    k.load(p.x0, b, h, first, keys, p.dim);
    v.load(p.x1, b, h, first, keys, p.dim);
    const bool hidden[2] = {p.mask.hides(b, first + g), p.mask.hides(b, first + g + 8)};
    float dk[kD / 8][4] = {}, dv[kD / 8][4] = {};
    const int from = p.mask.first_query(row);
    for (int chunk = from / kQueries; chunk < chunks; ++chunk) {
      const Shared<float> lse2 = shared_memory<float>(Pair::kBytes) + chunk % 2 * (2 * kQueries);
      const Shared<float> delta = lse2 + kQueries;
      if (!Pair::kResident || !loaded) {
        for (int n = thread_index(); n < kQueries; n += kThreads) {
          const int i = chunk * kQueries + n;
          const int64_t at = static_cast<int64_t>(block_x()) * queries + i;
          lse2[n] = i < queries ? p.lse[at] * kLog2e : INFINITY;
          delta[n] = i < queries ? p.delta[at] : 0.0f;
        }
        others.get(b, h, chunk, chunk == from / kQueries, chunk + 1 < chunks);
      }
      loaded = true;
      if (Pair::kIdleWarpsSkip && !active) continue;
#pragma unroll 1
      for (int step = 0; step < kQueries; step += kStep) {
        const int query0 = chunk * kQueries + step;
        if (query0 >= queries) break;
        if (query0 + kStep <= from) continue;
        float s[kStep / 8][4] = {}, dp[kStep / 8][4] = {};
        Pair::begin(s, dp);
        multiply_transposed(s, k, others.x, step);
        multiply_transposed(dp, v, others.y, step);
        Pair::finish(s, dp);
#pragma unroll
        for (int n = 0; n < kStep / 8; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int column = n * 8 + 2 * t + c, limit = p.mask.limit(query0 + column);
            const float lse_of = lse2[step + column], delta_of = delta[step + column];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              float &score = s[n][half * 2 + c], &grad = dp[n][half * 2 + c];
              score = first + g + half * 8 < limit && !hidden[half]
                          ? fast_exp2(score * (p.scale * kLog2e) - lse_of)
                          : 0.0f;
              grad = score * (grad - delta_of);
            }
          }
        const RowsOperand<T, kStep> prob = packed<T>(s), ds = packed<T>(dp);
        Pair::begin(dv, dk);
        multiply(dv, prob, others.y, step);
        multiply(dk, ds, others.x, step);
        Pair::finish(dv, dk);
      }
    }
    const float one[2] = {1.0f, 1.0f}, factor[2] = {p.scale, p.scale};
    store_rows<T, kD>(dk, factor, p.out0, b, h, first, keys, p.dim);
    store_rows<T, kD>(dv, one, p.out1, b, h, first, keys, p.dim);
    if (!Pair::kResident) break;
  }
}

template <class Pair, int kDqStep, int kDkvStep>
void run_backward(const AttentionBackward& a, Stream stream) {
  using T = typename Pair::T;
  const int64_t items = a.q.sizes[0] * a.q.sizes[2];
  const int queries = static_cast<int>(a.q.sizes[1]), keys = static_cast<int>(a.k.sizes[1]);
  BackwardParams<Pair> p{Pair::source(a.k, a.v),
                         heads_of<const T>(a.q),
                         heads_of<const T>(a.dy),
                         heads_of<const T>(a.y),
                         heads_of<T>(a.dq),
                         {},
                         a.lse.ptr<const float>(),
                         a.delta.ptr<float>(),
                         mask_of(a.key_padding, a.q, a.k, a.causal),
                         static_cast<int>(a.q.sizes[2]),
                         static_cast<int>(a.q.sizes[3]),
                         splits_for(items, queries, Pair::kResident),
                         static_cast<float>(a.scale)};
  const auto grid = [&]() -> Dim3 { return {static_cast<unsigned>(items), static_cast<unsigned>(p.splits)}; };
  launch("attention", dq_kernel<Pair, kDqStep>, grid(), kThreads, Pair::kBytes, stream, p);
  p.others = Pair::source(a.q, a.dy);
  p.x0 = heads_of<const T>(a.k), p.x1 = heads_of<const T>(a.v), p.y = {};
  p.out0 = heads_of<T>(a.dk), p.out1 = heads_of<T>(a.dv);
  p.splits = splits_for(items, keys, Pair::kResident);
  constexpr int kStatistics = 4 * Pair::kRows * static_cast<int>(sizeof(float));  // of two chunks
  launch("attention", dkv_kernel<Pair, kDkvStep>, grid(), kThreads, Pair::kBytes + kStatistics, stream, p);
}

}  // namespace va::attention_mma
