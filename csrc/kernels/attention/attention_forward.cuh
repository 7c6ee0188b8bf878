// SPDX-License-Identifier: Apache-2.0
// Forward attention on tensor cores. A block takes the queries of one (batch, head), or some of them, 64 at a
// time. Where a chunk of K and V covers the keys, as it does for the short sequences of vision models, they
// are read once, the softmax needs a single pass, and the scores stay in registers. Longer sequences go
// through the same code chunk by chunk, or kStep keys of a chunk at a time, with an online softmax.
#pragma once
#include <cmath>

#include "kernels/attention/attention_mma.cuh"

namespace va::attention_mma {

template <class Pair>
struct ForwardParams {
  using T = typename Pair::T;
  typename Pair::Source keys_values;
  Heads<const T> q;
  Heads<T> y;
  float* lse;  // [B, H, N]
  Mask mask;
  int heads, dim;
  int queries;
  int splits;  // blocks that share the queries of a (batch, head)
  float scale;
};

template <class Pair, int kStep>
VA_KERNEL(kThreads, 2)
forward_kernel(const VA_PARAMETER ForwardParams<Pair> p) {
  using T = typename Pair::T;
  constexpr int kD = Pair::kD, kKeys = Pair::kRows;
  Pair kv(p.keys_values);
  const int g = lane_index() / 4, t = lane_index() % 4;
  const int b = block_x() / p.heads, h = block_x() % p.heads;
  const float scale2 = p.scale * kLog2e;
  static_assert(kStep == kKeys || (Pair::kResident && kStep < kKeys && kKeys <= 2 * kStep));
  bool loaded = false;
  for (int row = block_y() * kBlockRows; row < p.queries; row += p.splits * kBlockRows) {
    const int first = row + warp_index() * kWarpRows;
    const bool active = first < p.queries;
    RowsOperand<T, kD> q;
    q.load(p.q, b, h, first, p.queries, p.dim);
    float o[kD / 8][4] = {};
    float row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {0, 0};
    const int seen = p.mask.limit_of_rows(row);
    const int chunks = Pair::kResident ? seen > 0 : (seen + kKeys - 1) / kKeys;
    // The keys [step, step + count) of the current chunk, whose first is key0 - step.
    const auto attend = [&](auto count, int step, int key0) {
      constexpr int kCount = count();
      // S = Q K^T.
      float s[kCount / 8][4] = {};
      Pair::begin(s);
      multiply_transposed(s, q, kv.x, step);
      Pair::finish(s);
      // Mask, and the maximum of each row.
      const int limit[2] = {p.mask.limit(first + g) - key0 - 2 * t,
                            p.mask.limit(first + g + 8) - key0 - 2 * t};
      float new_max[2] = {row_max[0], row_max[1]};
#pragma unroll
      for (int n = 0; n < kCount / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (n * 8 + e % 2 >= limit[e / 2]) s[n][e] = -INFINITY;
      p.mask.hide(s, b, key0);
#pragma unroll
      for (int n = 0; n < kCount / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) new_max[e / 2] = fmaxf(new_max[e / 2], s[n][e]);
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
      for (int n = 0; n < kCount / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          s[n][e] = fast_exp2(s[n][e] * scale2 - offset[e / 2]);
          row_sum[e / 2] += s[n][e];
        }
      // O += P V.
      const RowsOperand<T, kCount> prob = packed<T>(s);
      Pair::begin(o);
      multiply(o, prob, kv.y, step);
      Pair::finish(o);
    };
    for (int chunk = 0; chunk < chunks; ++chunk) {
      if (!Pair::kResident || !loaded) kv.get(b, h, chunk, chunk == 0, chunk + 1 < chunks);
      loaded = true;
      if (Pair::kIdleWarpsSkip && !active) continue;
      attend(std::integral_constant<int, kStep>{}, 0, chunk * kKeys);
      if constexpr (kStep < kKeys) {
        if (kStep < seen) attend(std::integral_constant<int, kKeys - kStep>{}, kStep, kStep);
      }
    }

    if (Pair::kIdleWarpsSkip && !active) continue;
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = quad_sum(row_sum[half]);
      factor[half] = total > 0 ? 1.0f / total : (total == 0 ? 0.0f : total);  // no key: 0; NaN stays
      const int i = first + g + 8 * half;
      if (t == 0 && i < p.queries) {
        p.lse[static_cast<int64_t>(block_x()) * p.queries + i] =
            total == 0 ? INFINITY : row_max[half] * p.scale + logf(total);
      }
    }
    store_rows<T, kD>(o, factor, p.y, b, h, first, p.queries, p.dim);
    if (!Pair::kResident) break;  // see splits_for
  }
}

template <class Pair, int kStep = Pair::kRows>
void run_forward(const AttentionForward& a, Stream stream) {
  using T = typename Pair::T;
  const int64_t items = a.q.sizes[0] * a.q.sizes[2];
  const int queries = static_cast<int>(a.q.sizes[1]);
  const ForwardParams<Pair> p{Pair::source(a.k, a.v),
                              heads_of<const T>(a.q),
                              heads_of<T>(a.y),
                              a.lse.ptr<float>(),
                              mask_of(a.key_padding, a.q, a.k, a.causal),
                              static_cast<int>(a.q.sizes[2]),
                              static_cast<int>(a.q.sizes[3]),
                              queries,
                              splits_for(items, queries, Pair::kResident),
                              static_cast<float>(a.scale)};
  launch("attention", forward_kernel<Pair, kStep>,
         {static_cast<unsigned>(items), static_cast<unsigned>(p.splits)}, kThreads, Pair::kBytes, stream, p);
}

}  // namespace va::attention_mma
