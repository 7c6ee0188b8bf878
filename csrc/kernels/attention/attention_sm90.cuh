// SPDX-License-Identifier: Apache-2.0
// A block is one warpgroup. It takes a (batch, head) at a time and 64 of its queries at a time; K and V lie
// in shared memory, kKeys rows of them, which covers the short sequences of vision models whole. S = Q K^T
// and O += P V are WGMMA with S, P and O in registers, in which a warp holds 16 rows in the layout of mma
// m16n8: the softmax is that of the sm_80 kernel. What overlaps copies with arithmetic are the other blocks
// of the multiprocessor. Rows and columns past the end are read as zeros by TMA.
#pragma once
#include "kernels/attention/attention_sm90.h"

#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED
#include <cutlass/arch/barrier.h>
#include <cutlass/numeric_types.h>

#include <algorithm>
#include <cmath>
#include <cute/tensor.hpp>

#include "kernels/attention/attention_mma.cuh"

namespace va::attention_sm90 {

using namespace attention_mma;

constexpr int kRows = 64;  // queries of a step

template <class T>
using Element = std::conditional_t<std::is_same_v<T, Half>, cutlass::half_t, cutlass::bfloat16_t>;

template <class T, int kD, int kKeys>
struct Layouts {
  using E = Element<T>;
  using Atom = cute::GMMA::Layout_K_SW128_Atom<E>;
  using TileQ = cute::Shape<cute::Int<kRows>, cute::Int<kD>>;
  using TileK = cute::Shape<cute::Int<kKeys>, cute::Int<kD>>;
  using Q = decltype(cute::tile_to_shape(Atom{}, TileQ{}));
  using K = decltype(cute::tile_to_shape(Atom{}, TileK{}));
  // V lies as K does; the product wants to see [kD, kKeys].
  using VT =
      decltype(cute::composition(K{}, cute::make_layout(cute::Shape<cute::Int<kD>, cute::Int<kKeys>>{},
                                                        cute::Stride<cute::Int<kKeys>, cute::Int<1>>{})));
  using MmaS = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<E, E, float, cute::Shape<cute::Int<kRows>, cute::Int<kKeys>, cute::Int<kD>>,
                                 cute::GMMA::Major::K, cute::GMMA::Major::K>()));
  using MmaO = decltype(cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<E, E, float, cute::Shape<cute::Int<kRows>, cute::Int<kD>, cute::Int<kKeys>>,
                                 cute::GMMA::Major::K, cute::GMMA::Major::MN>()));

  struct alignas(1024) Memory {
    alignas(1024) E q[kRows * kD];
    alignas(1024) E k[kKeys * kD];
    alignas(1024) E v[kKeys * kD];
    uint64_t q_full, kv_full;
  };
};

template <class T>
struct Params {
  Heads<T> y;
  float* lse;  // [B, H, N]
  Mask mask;
  int heads, batch, dim;
  int queries, keys;
  float scale;
};

template <class T, int kD, int kKeys, class TmaQ, class TmaK>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Params<T> p, const __grid_constant__ TmaQ tma_q, const __grid_constant__ TmaK tma_k,
                   const __grid_constant__ TmaK tma_v) {
  using namespace cute;
  using L = Layouts<T, kD, kKeys>;
  using Barrier = cutlass::arch::ClusterTransactionBarrier;
  extern __shared__ __align__(1024) unsigned char va_shared_memory[];
  auto& memory = *reinterpret_cast<typename L::Memory*>(va_shared_memory);
  const Tensor sq = make_tensor(make_smem_ptr(memory.q), typename L::Q{});
  const Tensor sk = make_tensor(make_smem_ptr(memory.k), typename L::K{});
  const Tensor sv = make_tensor(make_smem_ptr(memory.v), typename L::K{});
  const Tensor svt = make_tensor(make_smem_ptr(memory.v), typename L::VT{});
  const bool leader = threadIdx.x == 0;
  if (leader) {
    Barrier::init(&memory.q_full, 1);
    Barrier::init(&memory.kv_full, 1);
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();

  // Starts the copy of tile `index` of head (b, h) to shared memory.
  const auto load = [&](const auto& tma, auto&& to, auto tile, int rows, int index, int b, int h,
                        uint64_t* bar) {
    const Tensor all = tma.get_tma_tensor(make_shape(rows, p.dim, p.heads, p.batch));
    const Tensor from = local_tile(all(_, _, h, b), tile, make_coord(index, Int<0>{}));
    auto [global, shared] =
        tma_partition(tma, Int<0>{}, Layout<_1>{}, group_modes<0, 2>(to), group_modes<0, 2>(from));
    copy(tma.with(*bar), global, shared);
  };

  typename L::MmaS mma_s;
  typename L::MmaO mma_o;
  const auto slice_s = mma_s.get_thread_slice(threadIdx.x);
  const auto slice_o = mma_o.get_thread_slice(threadIdx.x);
  const Tensor fq = slice_s.make_fragment_A(slice_s.partition_A(sq));
  const Tensor fk = slice_s.make_fragment_B(slice_s.partition_B(sk));
  const Tensor fv = slice_o.make_fragment_B(slice_o.partition_B(svt));
  Tensor s = partition_fragment_C(mma_s, Shape<Int<kRows>, Int<kKeys>>{});
  Tensor prob = make_tensor<Element<T>>(
      slice_o.partition_A(make_identity_tensor(Shape<Int<kRows>, Int<kKeys>>{})).layout().shape());
  Tensor o = partition_fragment_C(mma_o, Shape<Int<kRows>, Int<kD>>{});
  static_assert(size(s) == kKeys / 2 && size(prob) == kKeys / 2 && size(o) == kD / 2);

  const int g = lane_index() / 4, t = lane_index() % 4;
  const float scale2 = p.scale * kLog2e;
  const int chunks = (p.keys + kKeys - 1) / kKeys, rounds = (p.queries + kRows - 1) / kRows;
  int q_phase = 0, kv_phase = 0;
  for (int item = block_x(); item < p.heads * p.batch; item += grid_x()) {
    const int b = item / p.heads, h = item % p.heads;
    for (int round = 0; round < rounds; ++round) {
      const int first = round * kRows + warp_index() * kWarpRows;
      float row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {0, 0};
      clear(o);
      for (int chunk = 0; chunk < chunks; ++chunk) {
        const int key0 = chunk * kKeys;
        const bool new_keys = chunks > 1 || round == 0;
        __syncthreads();  // everybody is done with what lies in shared memory
        if (leader) {
          if (chunk == 0) {
            Barrier::arrive_and_expect_tx(&memory.q_full, sizeof(memory.q));
            load(tma_q, sq, typename L::TileQ{}, p.queries, round, b, h, &memory.q_full);
          }
          if (new_keys) {
            Barrier::arrive_and_expect_tx(&memory.kv_full, sizeof(memory.k) + sizeof(memory.v));
            load(tma_k, sk, typename L::TileK{}, p.keys, chunk, b, h, &memory.kv_full);
            load(tma_v, sv, typename L::TileK{}, p.keys, chunk, b, h, &memory.kv_full);
          }
        }
        if (chunk == 0) {
          Barrier::wait(&memory.q_full, q_phase);
          q_phase ^= 1;
        }
        if (new_keys) {
          Barrier::wait(&memory.kv_full, kv_phase);
          kv_phase ^= 1;
        }
        // S = Q K^T.
        clear(s);
        warpgroup_fence_operand(s);
        warpgroup_arrive();
        cute::gemm(mma_s, fq, fk, s);
        warpgroup_commit_batch();
        warpgroup_wait<0>();
        warpgroup_fence_operand(s);
        // Mask, and the maximum of each row.
        const int limit[2] = {p.mask.limit(first + g) - key0 - 2 * t,
                              p.mask.limit(first + g + 8) - key0 - 2 * t};
        float new_max[2] = {row_max[0], row_max[1]};
#pragma unroll
        for (int i = 0; i < kKeys / 2; ++i) {
          const int half = i / 2 % 2, column = i / 4 * 8 + i % 2;
          if (column >= limit[half] || p.mask.hides(b, key0 + column + 2 * t)) s(i) = -INFINITY;
          new_max[half] = fmaxf(new_max[half], s(i));
        }
        float offset[2], keep[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          new_max[half] = quad_max(new_max[half]);
          offset[half] = new_max[half] == -INFINITY ? 0.0f : new_max[half] * scale2;
          keep[half] = fast_exp2(row_max[half] * scale2 - offset[half]);  // 0 for the first chunk
          row_max[half] = new_max[half];
          row_sum[half] *= keep[half];
        }
#pragma unroll
        for (int i = 0; i < kD / 2; ++i) o(i) *= keep[i / 2 % 2];
        // P = exp(S - max), as the A operand: the same elements in the same order.
#pragma unroll
        for (int i = 0; i < kKeys / 2; ++i) {
          const float value = fast_exp2(s(i) * scale2 - offset[i / 2 % 2]);
          row_sum[i / 2 % 2] += value;
          prob(i) = Element<T>(value);
        }
        // O += P V.
        warpgroup_fence_operand(prob);
        warpgroup_fence_operand(o);
        warpgroup_arrive();
        cute::gemm(mma_o, prob, fv, o);
        warpgroup_commit_batch();
        warpgroup_wait<0>();
        warpgroup_fence_operand(o);
      }
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
      float rows[kD / 8][4];
#pragma unroll
      for (int i = 0; i < kD / 2; ++i) rows[i / 4][i % 4] = o(i);
      store_rows<T, kD>(rows, factor, p.y, b, h, first, p.queries, p.dim);
    }
  }
}

template <class T, int kD, int kKeys>
void run(const AttentionForward& a, Stream stream) {
  using L = Layouts<T, kD, kKeys>;
  const auto tma = [](const TensorView& x, auto layout, auto tile) {
    const auto stride = [&](int axis) {  // of an axis of size 1 TMA must not see what there is
      return x.sizes[axis] > 1 ? x.strides[axis] : x.sizes[3];
    };
    const auto global =
        cute::make_tensor(cute::make_gmem_ptr(x.ptr<const Element<T>>()),
                          cute::make_shape(static_cast<int>(x.sizes[1]), static_cast<int>(x.sizes[3]),
                                           static_cast<int>(x.sizes[2]), static_cast<int>(x.sizes[0])),
                          cute::make_stride(stride(1), cute::Int<1>{}, stride(2), stride(0)));
    return cute::make_tma_copy(cute::SM90_TMA_LOAD{}, global, layout, tile, cute::Int<1>{});
  };
  const auto tma_q = tma(a.q, typename L::Q{}, typename L::TileQ{});
  const auto tma_k = tma(a.k, typename L::K{}, typename L::TileK{});
  const auto tma_v = tma(a.v, typename L::K{}, typename L::TileK{});
  const Params<T> p{heads_of<T>(a.y),
                    a.lse.ptr<float>(),
                    mask_of(a.key_padding, a.q, a.k, a.causal),
                    static_cast<int>(a.q.sizes[2]),
                    static_cast<int>(a.q.sizes[0]),
                    static_cast<int>(a.q.sizes[3]),
                    static_cast<int>(a.q.sizes[1]),
                    static_cast<int>(a.k.sizes[1]),
                    static_cast<float>(a.scale)};
  auto* const kernel = forward_kernel<T, kD, kKeys, decltype(tma_q), decltype(tma_k)>;
  constexpr int kBytes = static_cast<int>(sizeof(typename L::Memory));
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "attention");
  const int blocks = std::min(p.heads * p.batch, 3 * multiprocessors());
  kernel<<<blocks, kThreads, kBytes, reinterpret_cast<cudaStream_t>(stream)>>>(p, tma_q, tma_k, tma_v);
  cuda_check(cudaGetLastError(), "attention");
}

}  // namespace va::attention_sm90

namespace va {

template <class T, int kD>
void cuda::attention_forward_sm90(const AttentionForward& a, Stream stream) {
  const int64_t keys = a.k.sizes[1];
  if constexpr (kD == 64) {
    constexpr int64_t kMost = 208;
    const int64_t chunks = std::max<int64_t>(1, (keys + kMost - 1) / kMost),
                  least = (keys + chunks - 1) / chunks;
    if (least <= 64) return attention_sm90::run<T, kD, 64>(a, stream);
    if (least <= 144) return attention_sm90::run<T, kD, 144>(a, stream);
    attention_sm90::run<T, kD, kMost>(a, stream);
  } else {
    attention_sm90::run<T, kD, 128>(a, stream);
  }
}

}  // namespace va
