// SPDX-License-Identifier: Apache-2.0
// Attention without tensor cores, for any dtype, head dim and alignment: one warp per row, each lane holding
// the columns lane, lane + 32, ... Right before fast: f64, short f32 sequences, odd sizes.
#include <cmath>

#include "core/dispatch.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_mma.cuh"

namespace va {
namespace {

using namespace attention_mma;

constexpr int kMaxPerLane = static_cast<int>(kAttentionMaxHeadDim) / kWarp;

template <class T>
struct LoopParams {
  using C = compute_t<T>;
  Heads<const T> q, k, v, y, dy;
  Heads<T> out0, out1;  // y | dq | dk and dv
  C* lse;               // [B, H, N]
  C* delta;             // [B, H, N]
  Mask mask;
  int heads, dim;
  int queries, keys;
  C scale;
};

template <class T, class C = compute_t<T>>
VA_DEVICE void load_row(C (&x)[kMaxPerLane], const T* p, int dim) {
#pragma unroll
  for (int i = 0; i < kMaxPerLane; ++i) {
    const int c = i * kWarp + lane_index();
    x[i] = c < dim ? C(to_float(p[c])) : C(0);
  }
}
template <class T, class C = compute_t<T>>
VA_DEVICE void store_row(T* p, const C (&x)[kMaxPerLane], C factor, int dim) {
#pragma unroll
  for (int i = 0; i < kMaxPerLane; ++i) {
    const int c = i * kWarp + lane_index();
    if (c < dim) p[c] = from_float<T>(x[i] * factor);
  }
}
template <class T, class C = compute_t<T>>
VA_DEVICE C dot_row(const C (&x)[kMaxPerLane], const T* p, int dim) {
  C sum = 0;
#pragma unroll
  for (int i = 0; i < kMaxPerLane; ++i) {
    const int c = i * kWarp + lane_index();
    if (c < dim) sum += x[i] * C(to_float(p[c]));
  }
  return warp_sum(sum);
}
template <class T, class C = compute_t<T>>
VA_DEVICE void add_row(C (&x)[kMaxPerLane], C factor, const T* p, int dim) {
#pragma unroll
  for (int i = 0; i < kMaxPerLane; ++i) {
    const int c = i * kWarp + lane_index();
    if (c < dim) x[i] += factor * C(to_float(p[c]));
  }
}

template <class T>
VA_KERNEL(kThreads)
forward_loop_kernel(LoopParams<T> p) {
  using C = compute_t<T>;
  const int b = block_x() / p.heads, h = block_x() % p.heads;
  const int i = block_y() * kWarps + warp_index();
  if (i >= p.queries) return;  // whole warps; there are no barriers
  C q[kMaxPerLane], o[kMaxPerLane] = {};
  load_row<T>(q, p.q.row(b, h, i), p.dim);
  C highest = -INFINITY, sum = 0;
  for (int j = 0; j < p.keys; ++j) {
    if (!p.mask.sees(b, i, j)) continue;
    const C s = p.scale * dot_row<T>(q, p.k.row(b, h, j), p.dim);
    if (!(s <= highest)) {  // also taken by NaN
      const C keep = exp_of(highest - s);
      sum *= keep;
#pragma unroll
      for (int c = 0; c < kMaxPerLane; ++c) o[c] *= keep;
      highest = s;
    }
    const C prob = exp_of(s - highest);
    sum += prob;
    add_row<T>(o, prob, p.v.row(b, h, j), p.dim);
  }
  store_row<T>(p.out0.row(b, h, i), o, sum == C(0) ? C(0) : C(1) / sum, p.dim);
  if (lane_index() == 0)
    p.lse[static_cast<int64_t>(block_x()) * p.queries + i] =
        sum == C(0) ? C(INFINITY) : highest + log_of(sum);
}

// dq and delta, one warp per query.
template <class T>
VA_KERNEL(kThreads)
dq_loop_kernel(LoopParams<T> p) {
  using C = compute_t<T>;
  const int b = block_x() / p.heads, h = block_x() % p.heads;
  const int i = block_y() * kWarps + warp_index();
  if (i >= p.queries) return;
  C q[kMaxPerLane], dy[kMaxPerLane], dq[kMaxPerLane] = {};
  load_row<T>(q, p.q.row(b, h, i), p.dim);
  load_row<T>(dy, p.dy.row(b, h, i), p.dim);
  const C delta = dot_row<T>(dy, p.y.row(b, h, i), p.dim),
          lse = p.lse[static_cast<int64_t>(block_x()) * p.queries + i];
  if (lane_index() == 0) p.delta[static_cast<int64_t>(block_x()) * p.queries + i] = delta;
  for (int j = 0; j < p.keys; ++j) {
    if (!p.mask.sees(b, i, j)) continue;
    const C prob = exp_of(p.scale * dot_row<T>(q, p.k.row(b, h, j), p.dim) - lse);
    const C ds = prob * (dot_row<T>(dy, p.v.row(b, h, j), p.dim) - delta);
    add_row<T>(dq, ds, p.k.row(b, h, j), p.dim);
  }
  store_row<T>(p.out0.row(b, h, i), dq, p.scale, p.dim);
}

// dk and dv, one warp per key.
template <class T>
VA_KERNEL(kThreads)
dkv_loop_kernel(LoopParams<T> p) {
  using C = compute_t<T>;
  const int b = block_x() / p.heads, h = block_x() % p.heads;
  const int j = block_y() * kWarps + warp_index();
  if (j >= p.keys) return;
  C k[kMaxPerLane], v[kMaxPerLane], dk[kMaxPerLane] = {}, dv[kMaxPerLane] = {};
  load_row<T>(k, p.k.row(b, h, j), p.dim);
  load_row<T>(v, p.v.row(b, h, j), p.dim);
  for (int i = 0; i < p.queries; ++i) {
    if (!p.mask.sees(b, i, j)) continue;
    const int64_t at = static_cast<int64_t>(block_x()) * p.queries + i;
    const C prob = exp_of(p.scale * dot_row<T>(k, p.q.row(b, h, i), p.dim) - p.lse[at]);
    const C ds = prob * (dot_row<T>(v, p.dy.row(b, h, i), p.dim) - p.delta[at]);
    add_row<T>(dv, prob, p.dy.row(b, h, i), p.dim);
    add_row<T>(dk, ds, p.q.row(b, h, i), p.dim);
  }
  store_row<T>(p.out0.row(b, h, j), dk, p.scale, p.dim);
  store_row<T>(p.out1.row(b, h, j), dv, C(1), p.dim);
}

Dim3 grid_for(int64_t rows, const TensorView& q) {
  return {static_cast<unsigned>(q.sizes[0] * q.sizes[2]),
          static_cast<unsigned>((rows + kWarps - 1) / kWarps)};
}

}  // namespace

void cuda::attention_forward_loop(const AttentionForward& a, Stream stream) {
  dispatch_float(a.q.dtype, "attention: q", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = compute_t<T>;
    LoopParams<T> p{};
    p.q = heads_of<const T>(a.q), p.k = heads_of<const T>(a.k), p.v = heads_of<const T>(a.v);
    p.out0 = heads_of<T>(a.y);
    p.lse = a.lse.ptr<C>();
    p.mask = mask_of(a.key_padding, a.q, a.k, a.causal);
    p.heads = static_cast<int>(a.q.sizes[2]), p.dim = static_cast<int>(a.q.sizes[3]);
    p.queries = p.mask.queries, p.keys = p.mask.keys;
    p.scale = static_cast<C>(a.scale);
    launch("attention", forward_loop_kernel<T>, grid_for(p.queries, a.q), kThreads, 0, stream, p);
  });
}

void cuda::attention_backward_loop(const AttentionBackward& a, Stream stream) {
  dispatch_float(a.q.dtype, "attention: q", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = compute_t<T>;
    LoopParams<T> p{};
    p.q = heads_of<const T>(a.q), p.k = heads_of<const T>(a.k), p.v = heads_of<const T>(a.v);
    p.y = heads_of<const T>(a.y), p.dy = heads_of<const T>(a.dy);
    p.lse = a.lse.ptr<C>(), p.delta = a.delta.ptr<C>();
    p.mask = mask_of(a.key_padding, a.q, a.k, a.causal);
    p.heads = static_cast<int>(a.q.sizes[2]), p.dim = static_cast<int>(a.q.sizes[3]);
    p.queries = p.mask.queries, p.keys = p.mask.keys;
    p.scale = static_cast<C>(a.scale);
    p.out0 = heads_of<T>(a.dq);
    launch("attention", dq_loop_kernel<T>, grid_for(p.queries, a.q), kThreads, 0, stream, p);
    p.out0 = heads_of<T>(a.dk), p.out1 = heads_of<T>(a.dv);
    launch("attention", dkv_loop_kernel<T>, grid_for(p.keys, a.q), kThreads, 0, stream, p);
  });
}

}  // namespace va
