// SPDX-License-Identifier: Apache-2.0
// What sm_90a adds to simt.cuh: the tensor copy engine (TMA), its barriers, and matrix products of a
// warpgroup (WGMMA). With VA_SIMT the emulator of tests/simt stands in, swizzles and barriers included.
//
// A strip is some rows of kWidth 16-bit columns in shared memory, from a multiple of 1024 bytes on. kWidth is
// 64, 32 or 16: rows of 128, 64 or 32 bytes whose 16-byte chunks are permuted among 8 rows so that neither
// copies nor products meet bank conflicts. The copy engine writes strips, and products read them.
#pragma once
#include <utility>

#include "core/tensor_view.h"
#include "kernels/common/simt.cuh"

#ifdef VA_SIMT
#include "simt/hopper.h"
#else
#include <cuda.h>  // types only: the driver is reached through the runtime
#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED
#include <cute/arch/mma_sm90_gmma.hpp>
#include <cute/arch/mma_sm90_gmma_ext.hpp>
#endif

namespace va::simt {

constexpr int kGroup = 128;  // threads of a warpgroup

// Describes a [B, N, H, D] tensor to the copy engine, which brings kWidth columns of `rows` tokens (at most
// 256) of one head. What lies outside the tensor is read as zeros.
#ifdef VA_SIMT
using TensorMap = emulator::TensorMap;
template <class T, int kWidth>
TensorMap tensor_map(const char*, const TensorView& x, int rows) {
  return {x.ptr<const T>(),
          {x.sizes[0], x.sizes[1], x.sizes[2], x.sizes[3]},
          {x.strides[0], x.strides[1], x.strides[2]},
          rows,
          kWidth};
}
#else
using TensorMap = CUtensorMap;
template <class T, int kWidth>
TensorMap tensor_map(const char* what, const TensorView& x, int rows) {
  static const auto encode = [&] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    cuda_check(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found),
        what);
    check(found == cudaDriverEntryPointSuccess, "the driver is too old for TMA (cuTensorMapEncodeTiled)");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  const auto size = [&](int axis) { return static_cast<cuuint64_t>(x.sizes[axis]); };
  const auto bytes = [&](int axis) {  // an axis of size 1 may have any stride
    return static_cast<cuuint64_t>(x.sizes[axis] > 1 ? x.strides[axis] * 2 : (x.sizes[3] * 2 + 15) / 16 * 16);
  };
  // Inner axes first; heads lie inside tokens in a packed projection.
  const cuuint64_t sizes[4] = {size(3), size(2), size(1), size(0)};
  const cuuint64_t strides[3] = {bytes(2), bytes(1), bytes(0)};
  const cuuint32_t box[4] = {kWidth, 1, static_cast<cuuint32_t>(rows), 1}, steps[4] = {1, 1, 1, 1};
  TensorMap map;
  const CUresult result = encode(
      &map, std::is_same_v<T, Half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4,
      x.data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      kWidth == 64   ? CU_TENSOR_MAP_SWIZZLE_128B
      : kWidth == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                     : CU_TENSOR_MAP_SWIZZLE_32B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    fail(std::string(what) + ": cuTensorMapEncodeTiled failed with " + std::to_string(result));
  return map;
}
#endif

// --- barriers that count bytes ----------------------------------------------------------------------------
// One thread inits, then the block must synchronise. Phases alternate between 0 and 1, from 0 on.
using CopyBarrier = Shared<uint64_t>;

VA_DEVICE void init_barrier(CopyBarrier barrier) {
#ifdef VA_SIMT
  emulator::init_barrier(barrier.offset());
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
// The phase ends when so many bytes have come.
VA_DEVICE void expect_bytes(CopyBarrier barrier, int bytes) {
#ifdef VA_SIMT
  emulator::expect_bytes(barrier.offset(), bytes);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
#endif
}
VA_DEVICE void wait_for_phase(CopyBarrier barrier, int phase) {
#ifdef VA_SIMT
  emulator::wait_for_phase(barrier.offset(), phase);
#else
  uint32_t done = 0;
  while (!done) {
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(phase)
                 : "memory");
  }
#endif
}
// Starts the copy of a strip from `column` and token `row` on. One thread calls it; the bytes count even
// where they lie outside the tensor. What was read there before must have been read before the last
// sync_block.
template <class T>
VA_DEVICE void copy_strip(Shared<T> to, const TensorMap& map, CopyBarrier barrier, int column, int row,
                          int head, int batch) {
#ifdef VA_SIMT
  emulator::copy_strip(to.offset(), map, barrier.offset(), column, row, head, batch);
#else
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(column), "r"(head), "r"(row), "r"(batch)
      : "memory");
#endif
}

// --- products of a warpgroup ------------------------------------------------------------------------------
// Between begin_products(accumulators...) and finish_products(the same) the accumulators and what the
// products read must be left alone.
#ifdef VA_SIMT
template <class... Acc>
VA_DEVICE void begin_products(Acc&...) {}
template <class... Acc>
VA_DEVICE void finish_products(Acc&...) {}
#else
template <int n>
VA_DEVICE void pin_registers(float (&acc)[n][4]) {  // keeps the compiler from moving them across this point
#pragma unroll
  for (int i = 0; i < n; ++i)
#pragma unroll
    for (int e = 0; e < 4; ++e) cute::warpgroup_fence_operand(acc[i][e]);
}
template <class... Acc>
VA_DEVICE void begin_products(Acc&... acc) {
  (pin_registers(acc), ...);
  sync_warp();  // products want converged warps
  cute::warpgroup_arrive();
}
template <class... Acc>
VA_DEVICE void finish_products(Acc&... acc) {
  cute::warpgroup_commit_batch();
  cute::warpgroup_wait<0>();
  (pin_registers(acc), ...);
}

// The instruction for kN columns.
template <class T, cute::SM90::GMMA::Major major, int kN>
struct WarpgroupMma;
#define VA_WARPGROUP_MMA(n)                                                                   \
  template <cute::SM90::GMMA::Major major>                                                    \
  struct WarpgroupMma<Half, major, n>                                                         \
      : cute::SM90::GMMA::MMA_64x##n##x16_F32F16F16_RS<cute::SM90::GMMA::Major::K, major> {}; \
  template <cute::SM90::GMMA::Major major>                                                    \
  struct WarpgroupMma<BFloat16, major, n>                                                     \
      : cute::SM90::GMMA::MMA_64x##n##x16_F32BF16BF16_RS<cute::SM90::GMMA::Major::K, major> {};
VA_WARPGROUP_MMA(16)
VA_WARPGROUP_MMA(32)
VA_WARPGROUP_MMA(64)
VA_WARPGROUP_MMA(80)
VA_WARPGROUP_MMA(96)
VA_WARPGROUP_MMA(128)
VA_WARPGROUP_MMA(136)
VA_WARPGROUP_MMA(144)
VA_WARPGROUP_MMA(208)
#undef VA_WARPGROUP_MMA

template <class Mma, int n, size_t... i>
VA_DEVICE void run_mma(float (&acc)[n][4], const uint32_t (&a)[4], uint64_t b, std::index_sequence<i...>) {
  Mma::fma(a[0], a[1], a[2], a[3], b, acc[i / 4][i % 4]..., cute::SM90::GMMA::ScaleOut::One);
}
#endif

// acc += A B for A [64, 16] in registers: a warp holds 16 rows as for mma_16x8x16, and so it does of acc
// [64, kN]. B comes from a strip of kWidth columns:
//   kTransposed: B[k][n] = row n, column k of the strip; `at` is row 0, column 0 of the product's;
//   otherwise:   B[k][n] = row k, column n; kN = kWidth.
template <bool kTransposed, int kWidth, class T, int n>
VA_DEVICE void warpgroup_mma(float (&acc)[n][4], const uint32_t (&a)[4], Shared<T> at) {
  constexpr int kN = n * 8;
  static_assert(kTransposed || kN == kWidth);
#ifdef VA_SIMT
  emulator::warpgroup_mma<T>(&acc[0][0], a, at.offset(), kN, kWidth, kTransposed);
#else
  // Strips need no leading byte offset; the stride is that of 8 rows.
  constexpr uint64_t kSwizzle = kWidth == 64 ? 1 : kWidth == 32 ? 2 : 3;
  constexpr uint64_t kFixed = kSwizzle << 62 | static_cast<uint64_t>(8 * kWidth * 2 / 16) << 32 | 1u << 16;
  const uint64_t b = kFixed | ((shared_address(at) & 0x3ffff) >> 4);
  using cute::SM90::GMMA::Major;
  run_mma<WarpgroupMma<T, kTransposed ? Major::K : Major::MN, kN> >(acc, a, b,
                                                                    std::make_index_sequence<n * 4>());
#endif
}

}  // namespace va::simt
