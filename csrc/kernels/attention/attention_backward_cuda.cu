// SPDX-License-Identifier: Apache-2.0
// Backward attention on tensor cores, for every GPU from sm_80 on, deterministic without atomics: one kernel
// owns rows of dQ and loops over keys, another owns rows of dK and dV and loops over queries. Both recompute
// the probabilities from the log-sum-exp of the forward pass. With P = exp(scale Q K^T - lse),
// dP = dO V^T and delta = rowsum(dO * O):
//   dS = scale P (dP - delta);  dQ = dS K;  dK = dS^T Q;  dV = P^T dO.
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_mma.cuh"

namespace va {
namespace {

using namespace attention_mma;

template <class T>
struct BackwardParams {
  Heads<const T> q, k, v, y, dy;
  Heads<T> dq, dk, dv;
  const float* lse;  // [B, H, N]
  float* delta;      // [B, H, N]
  Mask mask;
  int heads, dim;
  int queries, keys;
  float scale;
};

// delta = rowsum(dO * O), one warp per row.
template <class T>
VA_KERNEL(kThreads)
delta_kernel(BackwardParams<T> p) {
  const int i = block_y() * kWarps + warp_index();
  const int b = block_x() / p.heads, h = block_x() % p.heads;
  float sum = 0;
  if (i < p.queries) {
    const T* y = p.y.row(b, h, i);
    const T* dy = p.dy.row(b, h, i);
    for (int c = lane_index(); c < p.dim; c += kWarp) sum += to_float(y[c]) * to_float(dy[c]);
  }
  sum = warp_sum(sum);
  if (lane_index() == 0 && i < p.queries) p.delta[static_cast<int64_t>(block_x()) * p.queries + i] = sum;
}

// A block owns 64 queries of one head.
template <class T, int kD, int kKeys>
VA_KERNEL(kThreads)
dq_kernel(BackwardParams<T> p) {
  using TileT = Tile<T, kD>;
  TileT k_tile{shared_memory<T>(0)}, v_tile{shared_memory<T>(TileT::bytes(kKeys))};
  const int g = lane_index() / 4, t = lane_index() % 4;
  const int b = block_x() / p.heads, h = block_x() % p.heads;
  const int first = (block_y() * kWarps + warp_index()) * kWarpRows;
  const bool active = first < p.queries;
  RowsOperand<T, kD> q, dy;
  q.load(p.q, b, h, first, p.queries, p.dim);
  dy.load(p.dy, b, h, first, p.queries, p.dim);
  float lse2[2] = {INFINITY, INFINITY}, delta[2] = {0, 0};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = first + g + 8 * half;
    if (i < p.queries) {
      lse2[half] = p.lse[static_cast<int64_t>(block_x()) * p.queries + i] * kLog2e;
      delta[half] = p.delta[static_cast<int64_t>(block_x()) * p.queries + i];
    }
  }
  float dq[kD / 8][4] = {};
  for (int key0 = 0; key0 < p.keys; key0 += kKeys) {
    sync_block();
    k_tile.template load<kKeys>(p.k, b, h, key0, p.keys, p.dim);
    v_tile.template load<kKeys>(p.v, b, h, key0, p.keys, p.dim);
    commit_copies();
    wait_copies<0>();
    sync_block();
    if (!active) continue;
    const int limit[2] = {p.mask.limit(first + g) - key0 - 2 * t, p.mask.limit(first + g + 8) - key0 - 2 * t};
    float s[kKeys / 8][4] = {}, dp[kKeys / 8][4] = {};
    multiply_transposed<kKeys>(s, q, k_tile);
    multiply_transposed<kKeys>(dp, dy, v_tile);
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool seen = n * 8 + e % 2 < limit[e / 2] && !p.mask.hides(b, key0 + n * 8 + 2 * t + e % 2);
        const float prob = seen ? fast_exp2(s[n][e] * (p.scale * kLog2e) - lse2[e / 2]) : 0.0f;
        s[n][e] = prob * (dp[n][e] - delta[e / 2]);
      }
    multiply<kKeys>(dq, s, k_tile);
  }
  const float factor[2] = {p.scale, p.scale};
  if (active) store_rows<T, kD>(dq, factor, p.dq, b, h, first, p.queries, p.dim);
}

// A block owns 64 keys of one head; S and dP are computed transposed, keys as rows.
template <class T, int kD, int kQueries>
VA_KERNEL(kThreads, 2)
dkv_kernel(BackwardParams<T> p) {
  using TileT = Tile<T, kD>;
  constexpr int kTileBytes = TileT::bytes(kQueries);
  TileT q_tile{shared_memory<T>(0)}, dy_tile{shared_memory<T>(kTileBytes)};
  Shared<float> lse2 = shared_memory<float>(2 * kTileBytes);
  Shared<float> delta = lse2 + kQueries;
  const int g = lane_index() / 4, t = lane_index() % 4;
  const int b = block_x() / p.heads, h = block_x() % p.heads;
  const int first = (block_y() * kWarps + warp_index()) * kWarpRows;
  const bool active = first < p.keys;
  RowsOperand<T, kD> k, v;
  k.load(p.k, b, h, first, p.keys, p.dim);
  v.load(p.v, b, h, first, p.keys, p.dim);
  float dk[kD / 8][4] = {}, dv[kD / 8][4] = {};
  for (int query0 = 0; query0 < p.queries; query0 += kQueries) {
    sync_block();
    q_tile.template load<kQueries>(p.q, b, h, query0, p.queries, p.dim);
    dy_tile.template load<kQueries>(p.dy, b, h, query0, p.queries, p.dim);
    commit_copies();
    for (int i = thread_index(); i < kQueries; i += kThreads) {
      const bool valid = query0 + i < p.queries;
      lse2[i] = valid ? p.lse[static_cast<int64_t>(block_x()) * p.queries + query0 + i] * kLog2e : INFINITY;
      delta[i] = valid ? p.delta[static_cast<int64_t>(block_x()) * p.queries + query0 + i] : 0.0f;
    }
    wait_copies<0>();
    sync_block();
    if (!active) continue;
    float s[kQueries / 8][4] = {}, dp[kQueries / 8][4] = {};
    multiply_transposed<kQueries>(s, k, q_tile);
    multiply_transposed<kQueries>(dp, v, dy_tile);
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = n * 8 + 2 * t + e % 2;
        const float prob = p.mask.sees(b, query0 + column, first + g + e / 2 * 8)
                               ? fast_exp2(s[n][e] * (p.scale * kLog2e) - static_cast<float>(lse2[column]))
                               : 0.0f;
        s[n][e] = prob;
        dp[n][e] = prob * (dp[n][e] - static_cast<float>(delta[column]));
      }
    multiply<kQueries>(dv, s, dy_tile);
    multiply<kQueries>(dk, dp, q_tile);
  }
  const float one[2] = {1.0f, 1.0f}, factor[2] = {p.scale, p.scale};
  if (active) {
    store_rows<T, kD>(dk, factor, p.dk, b, h, first, p.keys, p.dim);
    store_rows<T, kD>(dv, one, p.dv, b, h, first, p.keys, p.dim);
  }
}

unsigned blocks_for(int rows, int rows_per_block) {
  return static_cast<unsigned>((rows + rows_per_block - 1) / rows_per_block);
}

}  // namespace

template <class T, int kD>
void cuda::attention_backward_mma(const AttentionBackward& a, Stream stream) {
  const BackwardParams<T> p{heads_of<const T>(a.q),
                            heads_of<const T>(a.k),
                            heads_of<const T>(a.v),
                            heads_of<const T>(a.y),
                            heads_of<const T>(a.dy),
                            heads_of<T>(a.dq),
                            heads_of<T>(a.dk),
                            heads_of<T>(a.dv),
                            a.lse.ptr<const float>(),
                            a.delta.ptr<float>(),
                            mask_of(a.key_padding, a.q, a.k, a.causal),
                            static_cast<int>(a.q.sizes[2]),
                            static_cast<int>(a.q.sizes[3]),
                            static_cast<int>(a.q.sizes[1]),
                            static_cast<int>(a.k.sizes[1]),
                            static_cast<float>(a.scale)};
  // The other side's rows per step; more would spill.
  constexpr int kTile = kD <= 64 ? 64 : 32, kDkvTile = kD <= 96 ? kTile : 16;
  constexpr int kRowsPerBlock = kWarps * kWarpRows;
  constexpr int kBytes = 2 * Tile<T, kD>::bytes(kTile), kDkvBytes = 2 * Tile<T, kD>::bytes(kDkvTile);
  const auto items = static_cast<unsigned>(a.q.sizes[0] * a.q.sizes[2]);
  launch("attention", delta_kernel<T>, {items, blocks_for(p.queries, kWarps)}, kThreads, 0, stream, p);
  launch("attention", dq_kernel<T, kD, kTile>, {items, blocks_for(p.queries, kRowsPerBlock)}, kThreads,
         kBytes, stream, p);
  launch("attention", dkv_kernel<T, kD, kDkvTile>, {items, blocks_for(p.keys, kRowsPerBlock)}, kThreads,
         kDkvBytes + 2 * kDkvTile * static_cast<int>(sizeof(float)), stream, p);
}

template void cuda::attention_backward_mma<Half, 32>(const AttentionBackward&, Stream);
template void cuda::attention_backward_mma<Half, 64>(const AttentionBackward&, Stream);
template void cuda::attention_backward_mma<Half, 80>(const AttentionBackward&, Stream);
template void cuda::attention_backward_mma<Half, 96>(const AttentionBackward&, Stream);
template void cuda::attention_backward_mma<Half, 128>(const AttentionBackward&, Stream);
template void cuda::attention_backward_mma<BFloat16, 32>(const AttentionBackward&, Stream);
template void cuda::attention_backward_mma<BFloat16, 64>(const AttentionBackward&, Stream);
template void cuda::attention_backward_mma<BFloat16, 80>(const AttentionBackward&, Stream);
template void cuda::attention_backward_mma<BFloat16, 96>(const AttentionBackward&, Stream);
template void cuda::attention_backward_mma<BFloat16, 128>(const AttentionBackward&, Stream);

}  // namespace va
