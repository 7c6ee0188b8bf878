// SPDX-License-Identifier: Apache-2.0
// One CUTLASS 2.x matrix product: CUTLASS's threadblock-level main loop, and an epilogue visitor that hands
// each run of neighbouring outputs to finish_run.
#pragma once
#include <cutlass/gemm/kernel/default_gemm_universal_with_visitor.h>

// Not in alphabetical order: this one needs the above.
#include <cutlass/epilogue/threadblock/fusion/visitors.hpp>

#include "kernels/linear/linear_sm80.h"

namespace va::linear_gemm {

template <Math math>
struct Types {
  using Storage = float;
  using Element = float;
  using Instruction = cutlass::gemm::GemmShape<16, 8, 8>;
  using Operator = std::conditional_t<math == Math::f32, cutlass::arch::OpMultiplyAddFastF32,
                                      cutlass::arch::OpMultiplyAdd>;
};
template <>
struct Types<Math::f16> {
  using Storage = Half;
  using Element = cutlass::half_t;
  using Instruction = cutlass::gemm::GemmShape<16, 8, 16>;
  using Operator = cutlass::arch::OpMultiplyAdd;
};
template <>
struct Types<Math::bf16> {
  using Storage = BFloat16;
  using Element = cutlass::bfloat16_t;
  using Instruction = cutlass::gemm::GemmShape<16, 8, 16>;
  using Operator = cutlass::arch::OpMultiplyAdd;
};

// The tile table: block tile, warp tile, stages. All fit 99 KB of shared memory (sm_86, sm_89).
template <Math math, Tile tile>
constexpr auto tile_shape() {
  using cutlass::gemm::GemmShape;
  struct Shape {
    int block_m, block_n, block_k, warp_m, warp_n, stages;
  };
  constexpr bool kSmall = tile != Tile::large;
  if (math == Math::f32) return kSmall ? Shape{64, 64, 16, 32, 16, 4} : Shape{128, 64, 16, 64, 32, 3};
  if (math == Math::tf32) return kSmall ? Shape{64, 64, 16, 32, 32, 6} : Shape{128, 128, 16, 64, 64, 4};
  return kSmall ? Shape{64, 64, 32, 32, 32, 6} : Shape{128, 128, 32, 64, 64, 4};
}

template <Math math, Major major, Tile tile>
struct Kernel {
  using T = typename Types<math>::Storage;
  using Element = typename Types<math>::Element;
  static constexpr auto kShape = tile_shape<math, tile>();
  using Block = cutlass::gemm::GemmShape<kShape.block_m, kShape.block_n, kShape.block_k>;
  using Warp = cutlass::gemm::GemmShape<kShape.warp_m, kShape.warp_n, kShape.block_k>;
  static constexpr int kRun = 16 / sizeof(T);  // outputs of one epilogue access
  static constexpr int kAccess = (tile == Tile::loose ? 4 : 16) / sizeof(T);  // operands of one load
  using RowMajor = cutlass::layout::RowMajor;
  using ColumnMajor = cutlass::layout::ColumnMajor;
  using LayoutA = std::conditional_t<major == Major::mm, ColumnMajor, RowMajor>;
  using LayoutB = std::conditional_t<major == Major::kk, ColumnMajor, RowMajor>;  // of the [k, n] operand
  using Swizzle = cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<8>;
  using Default = typename cutlass::gemm::kernel::DefaultGemm<
      Element, LayoutA, kAccess, Element, LayoutB, kAccess, Element, RowMajor, float,
      cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, Block, Warp, typename Types<math>::Instruction,
      cutlass::epilogue::thread::LinearCombination<Element, kRun, float, float>, Swizzle, kShape.stages,
      false, typename Types<math>::Operator>::GemmKernel;
  using Mma = typename Default::Mma;

  struct Params {
    cutlass::gemm::GemmCoord size, tiles;
    int log_tile, chunk;
    typename Mma::IteratorA::Params a_params;
    typename Mma::IteratorB::Params b_params;
    Element *a, *b;
    Epilogue epilogue;
    void* partial;
  };

  // The visitor: CUTLASS moves accumulators through shared memory so that a thread holds kRun neighbours.
  struct Visitor {
    using Threads = cutlass::epilogue::threadblock::OutputTileThreadLayout<Block, Warp, Element, kRun>;
    using Arguments = Params;
    struct SharedStorage {};
    using Params = typename Kernel::Params;
    const Params* params;

    CUTLASS_DEVICE Visitor(const Params& p, SharedStorage&) : params(&p) {}

    template <class Coords>
    struct Callbacks : cutlass::epilogue::threadblock::detail::EmptyCallbacks {
      const Params* p;
      Coords coords;
      CUTLASS_DEVICE Callbacks(const Params* p, Coords coords) : p(p), coords(coords) {}

      CUTLASS_DEVICE auto visit(int step, int row, int column, int, const cutlass::Array<float, kRun>& sums) {
        const auto at = coords(cute::_0{}, column, row, step);
        const int m = cute::get<0>(at), n = cute::get<1>(at), part = cute::get<2>(at);
        if (m < p->size.m() && n < p->size.n()) {
          float v[kRun];
          CUTLASS_PRAGMA_UNROLL
          for (int i = 0; i < kRun; ++i) v[i] = sums[i];
          const int count = min(kRun, p->size.n() - n);
          if (p->partial)
            store_run<float>(p->partial, (static_cast<int64_t>(part) * p->size.m() + m) * p->size.n() + n,
                             count, p->epilogue.vectors, v);
          else
            finish_run<T>(p->epilogue, m, n, count, v);
        }
        return sums;
      }
    };

    template <class ProblemShape>
    CUTLASS_DEVICE auto get_callbacks(cutlass::gemm::GemmCoord tile_offset, int thread, ProblemShape shape) {
      const auto all = cute::make_identity_tensor(shape);
      const auto mine = cute::group_modes<3, 6>(Threads::partition(all, thread, tile_offset));
      return Callbacks<std::decay_t<decltype(mine)>>(params, mine);
    }
  };
  using Finish =
      cutlass::epilogue::threadblock::EpilogueWithVisitorCallbacks<typename Default::Epilogue, Visitor, 1>;
  union SharedStorage {
    typename Mma::SharedStorage main_loop;
    typename Finish::SharedStorage epilogue;
  };
  static constexpr int kThreads = 32 * Mma::WarpCount::kCount;

  static __device__ void run(const Params& p, SharedStorage& shared) {
    Swizzle swizzle;
    const cutlass::gemm::GemmCoord tile_offset = swizzle.get_tile_offset(p.log_tile);
    if (p.tiles.m() <= tile_offset.m() || p.tiles.n() <= tile_offset.n()) return;
    const int k0 = tile_offset.k() * p.chunk, k1 = min(p.size.k(), k0 + p.chunk);
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
    const int warp = cutlass::canonical_warp_idx_sync();
    typename Mma::IteratorA a(p.a_params, p.a, {p.size.m(), k1}, thread, {tile_offset.m() * Block::kM, k0});
    typename Mma::IteratorB b(p.b_params, p.b, {k1, p.size.n()}, thread, {k0, tile_offset.n() * Block::kN});
    Mma mma(shared.main_loop, thread, warp, lane);
    typename Mma::FragmentC sums;
    sums.clear();
    mma((k1 - k0 + Block::kK - 1) / Block::kK, sums, a, b, sums);
    Finish finish(p, shared.epilogue, thread, warp, lane);
    finish(sums, tile_offset, cute::make_shape(p.size.m(), p.size.n(), p.tiles.k()), thread);
  }
};

template <class K>
__global__ void __launch_bounds__(K::kThreads) sm80_kernel(const __grid_constant__ typename K::Params p) {
  extern __shared__ __align__(128) unsigned char va_sm80_shared[];
  K::run(p, *reinterpret_cast<typename K::SharedStorage*>(va_sm80_shared));
}

template <Math math, Major major, Tile tile>
void run_sm80(const Gemm& g, Stream stream) {
  using K = Kernel<math, major, tile>;
  using Element = typename K::Element;
  const cutlass::gemm::GemmCoord size(static_cast<int>(g.m), static_cast<int>(g.n), static_cast<int>(g.k));
  const auto tiles = K::Swizzle::get_tiled_shape(size, {K::Block::kM, K::Block::kN, K::Block::kK}, g.splits);
  const auto ld = [](const Operand& x) { return static_cast<int>(x.row == 1 ? x.col : x.row); };
  const typename K::Params params{size,
                                  tiles,
                                  K::Swizzle::get_log_tile(tiles),
                                  g.splits > 1 ? static_cast<int>(g.chunk) : size.k(),
                                  typename K::Mma::IteratorA::Params(typename K::LayoutA(ld(g.a))),
                                  typename K::Mma::IteratorB::Params(typename K::LayoutB(ld(g.b))),
                                  static_cast<Element*>(const_cast<void*>(g.a.data)),
                                  static_cast<Element*>(const_cast<void*>(g.b.data)),
                                  g.epilogue,
                                  g.partial};
  const dim3 grid = K::Swizzle::get_grid_shape(tiles);
  simt::launch("linear", sm80_kernel<K>, {grid.x, grid.y, grid.z}, K::kThreads,
               sizeof(typename K::SharedStorage), stream, params);
}

}  // namespace va::linear_gemm
