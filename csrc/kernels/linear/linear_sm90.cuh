// SPDX-License-Identifier: Apache-2.0
// One CUTLASS 3.x matrix product for sm_90a.
#pragma once
#include <cutlass/gemm/device/gemm_universal_adapter.h>

#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/gemm/kernel/tile_scheduler.hpp>

#include "kernels/linear/linear_sm90.h"

namespace va::linear_gemm {

namespace sm90 {

using cute::_0;
using cute::_1;
using cute::_128;
using cute::_2;
using cute::_256;
using cute::_64;
namespace collective = cutlass::epilogue::collective;
namespace fusion = cutlass::epilogue::fusion;
constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;

struct ActivationArguments {
  Activation activation = Activation::none;
};

template <class A>
CUTLASS_DEVICE A activated(A z, Activation activation) {
  float v[A::kElements];
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < A::kElements; ++i) v[i] = z[i];
  gpu::activate<true>(activation, v);
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < A::kElements; ++i) z[i] = v[i];
  return z;
}

// Nodes of the tree; CUTLASS instantiates them with float and with arrays of float.
template <class A>
struct Activate {
  using Arguments = ActivationArguments;
  CUTLASS_DEVICE A operator()(const A& z, const Arguments& args) const {
    return activated(z, args.activation);
  }
};

template <class A>
struct Finish {
  using Arguments = ActivationArguments;
  CUTLASS_DEVICE A operator()(const A& z, const A& scale, const A& residual, const Arguments& args) const {
    const A y = activated(z, args.activation);
    cutlass::multiply_add<A> fma;
    return fma(scale, y, residual);
  }
};

template <class A>
struct TimesDerivative {
  using Arguments = ActivationArguments;
  CUTLASS_DEVICE A operator()(const A& dx, const A& input, const Arguments& args) const {
    float z[A::kElements], v[A::kElements];
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < A::kElements; ++i) z[i] = input[i], v[i] = dx[i];
    gpu::times_derivative<true>(args.activation, z, v);
    A out;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < A::kElements; ++i) out[i] = v[i];
    return out;
  }
};

template <Tile90 tile>
struct Shape;
template <>
struct Shape<Tile90::large> {
  using Block = cute::Shape<_128, _256, _64>;
  using MainLoop = cutlass::gemm::KernelTmaWarpSpecializedCooperative;
  using Epilogue = cutlass::epilogue::TmaWarpSpecializedCooperative;
};
template <>
struct Shape<Tile90::medium> {
  using Block = cute::Shape<_128, _128, _64>;
  using MainLoop = cutlass::gemm::KernelTmaWarpSpecializedPingpong;
  using Epilogue = cutlass::epilogue::TmaWarpSpecialized;
};

template <Math math, Form form, Tile90 tile>
struct Kernel {
  static_assert(math == Math::f16 || math == Math::bf16);
  using T = std::conditional_t<math == Math::f16, cutlass::half_t, cutlass::bfloat16_t>;
  static constexpr bool kHasResidual = form == Form::residual || form == Form::wide;
  static constexpr bool kIsGradient = form == Form::dx || form == Form::dx_input || form == Form::dw;
  // Stream-K needs both warpgroups on one tile.
  using Block = typename Shape<tile>::Block;
  using MainLoopSchedule =
      std::conditional_t<form == Form::dw, cutlass::gemm::KernelTmaWarpSpecializedCooperative,
                         typename Shape<tile>::MainLoop>;
  using EpilogueSchedule =
      std::conditional_t<form == Form::dw, cutlass::epilogue::TmaWarpSpecializedCooperative,
                         typename Shape<tile>::Epilogue>;
  using Cluster = cute::Shape<_2, _1, _1>;
  using RowMajor = cutlass::layout::RowMajor;
  using ColumnMajor = cutlass::layout::ColumnMajor;
  using LayoutA = std::conditional_t<form == Form::dw, ColumnMajor, RowMajor>;
  using LayoutB = std::conditional_t<kIsGradient, RowMajor, ColumnMajor>;
  using Y = std::conditional_t<form == Form::wide, float, T>;
  using Source = std::conditional_t<kHasResidual || form == Form::dx_input, Y, void>;  // read beside the sums
  static constexpr int kRunY = 16 / sizeof(Y), kRunT = 16 / sizeof(T);

  // The tree, from the accumulator up.
  using Bias = fusion::Sm90RowBroadcast<0, Block, T, float>;
  using Scale = fusion::Sm90RowBroadcast<0, Block, Y, float>;
  using Sum =
      fusion::Sm90EVT<fusion::Sm90Compute<cutlass::plus, float, float, kRound>, fusion::Sm90AccFetch, Bias>;
  using Descriptor = collective::detail::EpilogueDescriptor<Block, collective::EpilogueTileAuto, Source, Y,
                                                            EpilogueSchedule>;
  using Saved = collective::detail::AuxStoreDescriptor<Descriptor, RowMajor, T>;
  using StoredSum = fusion::Sm90EVT<
      fusion::Sm90AuxStore<Saved::Stages, typename Descriptor::EpilogueTile, T, kRound,
                           typename Saved::Stride, typename Saved::SmemLayoutAtom, typename Saved::CopyOpR2S>,
      Sum>;
  using Z = std::conditional_t<form == Form::saved, StoredSum, Sum>;
  using Root = std::conditional_t<kHasResidual, fusion::Sm90Compute<Finish, Y, float, kRound>,
                                  fusion::Sm90Compute<Activate, Y, float, kRound>>;
  using Gradient = std::conditional_t<
      form == Form::dx_input,
      fusion::Sm90EVT<fusion::Sm90Compute<TimesDerivative, Y, float, kRound>, fusion::Sm90AccFetch,
                      fusion::Sm90SrcFetch<Source>>,
      fusion::Sm90EVT<fusion::Sm90Compute<cutlass::epilogue::thread::Identity, Y, float, kRound>,
                      fusion::Sm90AccFetch>>;
  using Tree = std::conditional_t<
      kIsGradient, Gradient,
      std::conditional_t<kHasResidual, fusion::Sm90EVT<Root, Z, Scale, fusion::Sm90SrcFetch<Source>>,
                         fusion::Sm90EVT<Root, Z>>>;

  using Epilogue = typename collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Block, Cluster, collective::EpilogueTileAuto,
      float, float, Source, RowMajor, kRunY, Y, RowMajor, kRunY, EpilogueSchedule, Tree>::CollectiveOp;
  using MainLoop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, T, LayoutA, kRunT, T, LayoutB, kRunT, float, Block,
      Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename Epilogue::SharedStorage))>,
      MainLoopSchedule>::CollectiveOp;
  using Scheduler = std::conditional_t<form == Form::dw, cutlass::gemm::StreamKScheduler,
                                       cutlass::gemm::PersistentScheduler>;
  using Device = cutlass::gemm::device::GemmUniversalAdapter<
      cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, MainLoop, Epilogue, Scheduler>>;

  template <class Stride>
  static Stride stride(int64_t ld) {
    Stride s{};
    if constexpr (cute::is_static_v<std::decay_t<decltype(cute::get<0>(s))>>)
      cute::get<1>(s) = ld;
    else
      cute::get<0>(s) = ld;
    return s;
  }

  static typename Device::Arguments arguments(const Gemm& g) {
    const auto ld = [](const Operand& x) { return x.row == 1 ? x.col : x.row; };
    using GemmKernel = typename Device::GemmKernel;
    const linear_gemm::Epilogue& e = g.epilogue;
    typename Device::Arguments args{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {static_cast<int>(g.m), static_cast<int>(g.n), static_cast<int>(g.k), 1},
        {static_cast<const T*>(g.a.data), stride<typename GemmKernel::StrideA>(ld(g.a)),
         static_cast<const T*>(g.b.data), stride<typename GemmKernel::StrideB>(ld(g.b))},
        {{},
         static_cast<const Y*>(form == Form::dx_input ? e.input : e.residual),
         stride<typename GemmKernel::StrideC>(form == Form::dx_input ? e.input_row : e.residual_row),
         static_cast<Y*>(e.y),
         stride<typename GemmKernel::StrideD>(e.y_row)},
        {}};
    args.hw_info.sm_count = simt::multiprocessors();
    if constexpr (form == Form::dx_input) {
      args.epilogue.thread = {{}, {}, {e.activation}};
    } else if constexpr (!kIsGradient) {
      const typename Bias::Arguments bias{static_cast<const T*>(e.bias), T(0), {}};
      const typename Sum::Arguments sum{{}, bias, {}};
      const ActivationArguments act{e.activation};
      if constexpr (form == Form::plain) {
        args.epilogue.thread = {sum, act};
      } else if constexpr (form == Form::saved) {
        args.epilogue.thread = {{sum, {static_cast<T*>(e.z), stride<typename Saved::Stride>(e.z_row)}}, act};
      } else {
        const typename Scale::Arguments scale{static_cast<const Y*>(e.scale), Y(1), {}};
        args.epilogue.thread = {sum, scale, {}, act};
      }
    }
    return args;
  }
};

inline void check_status(cutlass::Status status) {
  if (status != cutlass::Status::kSuccess)
    fail(std::string("linear: CUTLASS refused the product: ") + cutlass::cutlassGetStatusString(status));
}

}  // namespace sm90

template <Math math, Form form, Tile90 tile>
int64_t sm90_scratch(const Gemm& g) {
  using K = sm90::Kernel<math, form, tile>;
  return static_cast<int64_t>(K::Device::get_workspace_size(K::arguments(g)));
}

template <Math math, Form form, Tile90 tile>
void run_sm90(const Gemm& g, void* scratch, int64_t scratch_bytes, Stream stream) {
  using K = sm90::Kernel<math, form, tile>;
  const auto args = K::arguments(g);
  check(static_cast<int64_t>(K::Device::get_workspace_size(args)) <= scratch_bytes,
        "linear: the workspace is too small");
  sm90::check_status(K::Device::can_implement(args));
  typename K::Device device;
  const auto s = reinterpret_cast<cudaStream_t>(stream);
  sm90::check_status(device.initialize(args, scratch, s));
  sm90::check_status(device.run(s));
}

}  // namespace va::linear_gemm
