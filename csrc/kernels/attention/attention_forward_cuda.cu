// SPDX-License-Identifier: Apache-2.0
// Forward attention on tensor cores, for every GPU from sm_80 on. A block takes one (batch, head) at a time;
// K and V are held in shared memory kKeys rows at a time. For the short sequences of vision models kKeys
// covers them whole: they are read once, the softmax needs a single pass, and the scores of 16 queries stay
// in registers. Longer sequences go through the same code chunk by chunk with an online softmax.
#include <algorithm>
#include <cmath>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_mma.cuh"

namespace va {
namespace {

using namespace attention_mma;

template <class T>
struct ForwardParams {
  Heads<const T> q, k, v;
  Heads<T> y;
  float* lse;  // [B, H, N]
  Mask mask;
  int heads, dim;
  int queries, keys;
  float scale;
  int items;  // batch x heads
};

template <class T, int kD, int kKeys>
VA_KERNEL(kThreads, 2)
forward_kernel(ForwardParams<T> p) {
  using TileT = Tile<T, kD>;
  TileT k_tile{shared_memory<T>(0)}, v_tile{shared_memory<T>(TileT::bytes(kKeys))};
  const int g = lane_index() / 4, t = lane_index() % 4;
  const float scale2 = p.scale * kLog2e;
  const int chunks = (p.keys + kKeys - 1) / kKeys;
  const int rounds = (p.queries + kWarps * kWarpRows - 1) / (kWarps * kWarpRows);

  for (int item = block_x(); item < p.items; item += grid_x()) {
    const int b = item / p.heads, h = item % p.heads;
    for (int round = 0; round < rounds; ++round) {
      const int first = (round * kWarps + warp_index()) * kWarpRows;
      const bool active = first < p.queries;
      RowsOperand<T, kD> q;
      q.load(p.q, b, h, first, p.queries, p.dim);
      float o[kD / 8][4] = {};
      float row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {0, 0};

      for (int chunk = 0; chunk < chunks; ++chunk) {
        const int key0 = chunk * kKeys;
        if (chunks > 1 || round == 0) {
          sync_block();  // everybody is done with the previous chunk
          k_tile.template load<kKeys>(p.k, b, h, key0, p.keys, p.dim);
          v_tile.template load<kKeys>(p.v, b, h, key0, p.keys, p.dim);
          commit_copies();
          wait_copies<0>();
          sync_block();
        }
        if (!active) continue;
        // S = Q K^T.
        float s[kKeys / 8][4] = {};
        multiply_transposed<kKeys>(s, q, k_tile);
        // Mask, and the maximum of each row.
        const int limit[2] = {p.mask.limit(first + g) - key0 - 2 * t,
                              p.mask.limit(first + g + 8) - key0 - 2 * t};
        float new_max[2] = {row_max[0], row_max[1]};
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            if (n * 8 + e % 2 >= limit[e / 2] || p.mask.hides(b, key0 + n * 8 + 2 * t + e % 2))
              s[n][e] = -INFINITY;
            new_max[e / 2] = fmaxf(new_max[e / 2], s[n][e]);
          }
        float offset[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          new_max[half] = quad_max(new_max[half]);
          offset[half] = new_max[half] == -INFINITY ? 0.0f : new_max[half] * scale2;
          const float keep = fast_exp2(row_max[half] * scale2 - offset[half]);  // 0 for the first chunk
          row_max[half] = new_max[half];
          row_sum[half] *= keep;
#pragma unroll
          for (int n = 0; n < kD / 8; ++n) {
            o[n][2 * half] *= keep;
            o[n][2 * half + 1] *= keep;
          }
        }
        // P = exp(S - max).
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            s[n][e] = fast_exp2(s[n][e] * scale2 - offset[e / 2]);
            row_sum[e / 2] += s[n][e];
          }
        // O += P V.
        multiply<kKeys>(o, s, v_tile);
      }

      if (!active) continue;
      float factor[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float total = quad_sum(row_sum[half]);
        factor[half] = total > 0 ? 1.0f / total : (total == 0 ? 0.0f : total);  // no key: 0; NaN stays
        const int i = first + g + 8 * half;
        if (t == 0 && i < p.queries) {
          p.lse[static_cast<int64_t>(item) * p.queries + i] =
              total == 0 ? INFINITY : row_max[half] * p.scale + logf(total);
        }
      }
      store_rows<T, kD>(o, factor, p.y, b, h, first, p.queries, p.dim);
    }
  }
}

template <class T, int kD, int kKeys>
void run(const ForwardParams<T>& p, Stream stream) {
  constexpr int kBytes = 2 * Tile<T, kD>::bytes(kKeys);
  const int blocks = std::min(p.items, 4 * multiprocessors());
  launch("attention", forward_kernel<T, kD, kKeys>, {static_cast<unsigned>(blocks)}, kThreads, kBytes, stream,
         p);
}

}  // namespace

template <class T, int kD>
void cuda::attention_forward_mma(const AttentionForward& a, Stream stream) {
  const ForwardParams<T> p{heads_of<const T>(a.q),
                           heads_of<const T>(a.k),
                           heads_of<const T>(a.v),
                           heads_of<T>(a.y),
                           a.lse.ptr<float>(),
                           mask_of(a.key_padding, a.q, a.k, a.causal),
                           static_cast<int>(a.q.sizes[2]),
                           static_cast<int>(a.q.sizes[3]),
                           static_cast<int>(a.q.sizes[1]),
                           static_cast<int>(a.k.sizes[1]),
                           static_cast<float>(a.scale),
                           static_cast<int>(a.q.sizes[0] * a.q.sizes[2])};
  // As few chunks as registers allow (208 keys, 96 for large heads), and these as short as covers the keys.
  constexpr int kMost = kD <= 64 ? 208 : 96;
  const int chunks = std::max(1, (p.keys + kMost - 1) / kMost), least = (p.keys + chunks - 1) / chunks;
  if (least <= 64) return run<T, kD, 64>(p, stream);
  if constexpr (kD <= 64) {
    if (least <= 128) return run<T, kD, 128>(p, stream);
    if (least <= 144) return run<T, kD, 144>(p, stream);
  }
  run<T, kD, kMost>(p, stream);
}

template void cuda::attention_forward_mma<Half, 32>(const AttentionForward&, Stream);
template void cuda::attention_forward_mma<Half, 64>(const AttentionForward&, Stream);
template void cuda::attention_forward_mma<Half, 80>(const AttentionForward&, Stream);
template void cuda::attention_forward_mma<Half, 96>(const AttentionForward&, Stream);
template void cuda::attention_forward_mma<Half, 128>(const AttentionForward&, Stream);
template void cuda::attention_forward_mma<BFloat16, 32>(const AttentionForward&, Stream);
template void cuda::attention_forward_mma<BFloat16, 64>(const AttentionForward&, Stream);
template void cuda::attention_forward_mma<BFloat16, 80>(const AttentionForward&, Stream);
template void cuda::attention_forward_mma<BFloat16, 96>(const AttentionForward&, Stream);
template void cuda::attention_forward_mma<BFloat16, 128>(const AttentionForward&, Stream);

}  // namespace va
