// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear/linear.h"

#include "core/dispatch.h"
#include "kernels/common/activation_math.h"
#include "kernels/common/gemm.h"

namespace va {
namespace VA_ISA {
namespace {

constexpr int64_t kGrainElements = 16384;  // below this a second thread costs more than it brings
constexpr int64_t kSumCols = 512;          // columns of dbias and dscale that one thread sums at a time
constexpr int64_t kSumRows = 64;  // rows that are summed before they join a longer sum: less rounding

template <class T>
T* row_of(const TensorView& x, int64_t row) {
  return x.defined() ? x.ptr<T>() + row * x.strides[0] : nullptr;
}

// A parameter [N] stored as S or, beside 16-bit S, as float.
template <class S>
Vec<compute_t<S>> load_scale(const TensorView& scale, int64_t col, int64_t n) {
  if (scale.dtype == DTypeOf<compute_t<S>>::value) return load_n(scale.ptr<compute_t<S>>() + col, n);
  return load_n(scale.ptr<S>() + col, n);
}

// f(S{}, W{}): the storage type of x and that of the wide tensors (S, or float beside 16-bit S).
template <class F>
void dispatch_types(DType x, DType wide, F&& f) {
  dispatch_float(x, "linear: x", [&](auto t) {
    using S = typename decltype(t)::type;
    if (wide == x)
      f(TypeTag<S>{}, TypeTag<S>{});
    else
      f(TypeTag<S>{}, TypeTag<compute_t<S>>{});
  });
}

// y = residual + scale * act(tile + bias)
template <class S, class W, Activation act>
void finish_tile(const LinearForward& a, const Tile<compute_t<S>>& t) {
  using C = compute_t<S>;
  const S* const bias = a.bias.defined() ? a.bias.ptr<S>() + t.col : nullptr;
  for (int64_t r = 0; r < t.rows; ++r) {
    const C* const sums = t.data + r * kTileCols<C>;
    const W* const residual = row_of<W>(a.residual, t.row + r);
    S* const z = row_of<S>(a.z, t.row + r);
    W* const y = row_of<W>(a.y, t.row + r);
    for_lanes<C>(t.cols, [&](int64_t c, auto n) {
      Vec<C> v = load_n(sums + c, n);
      if (bias) v += load_n(bias + c, n);
      if (z) store_n(z + t.col + c, v, n);
      v = ActivationFn<act>::value(v);
      if (a.scale.defined()) v *= load_scale<S>(a.scale, t.col + c, n);
      if (residual) v += load_n(residual + t.col + c, n);
      store_n(y + t.col + c, v, n);
    });
  }
}

template <class S, class W, Activation act>
void forward(const LinearForward& a) {
  Gemm<S> g{a.y.sizes[0], a.y.sizes[1], a.x.sizes[1], {a.x.ptr<S>(), a.x.strides[0], a.x.strides[1]}, {}};
  if (a.packed.defined()) {
    g.packed = a.packed.ptr<S>();
    g.first = a.first;
  } else {
    g.b = {a.weight.ptr<S>(), a.weight.strides[0], a.weight.strides[1]};
  }
  gemm<S>(g, [&](const Tile<compute_t<S>>& t) { finish_tile<S, W, act>(a, t); });
}

// dz = dy * scale * act'(z) of one row from column `from` on, and its share of the sums of these columns.
template <class S, class W, Activation act>
void dz_row(const LinearBackward& a, int64_t row, int64_t from, int64_t to, compute_t<S>* dbias,
            compute_t<S>* dscale) {
  using C = compute_t<S>;
  const W* const dy = row_of<W>(a.dy, row);
  const S* const z = row_of<S>(a.z, row);
  S* const dz = row_of<S>(a.dz, row);
  for_lanes<C>(to - from, [&](int64_t i, auto n) {
    const int64_t c = from + i;
    Vec<C> d = load_n(dy + c, n);
    if (dscale) {
      const Vec<C> activated = ActivationFn<act>::value(load_n(z + c, n));
      store_n(dscale + i, load_n(dscale + i, n) + d * activated, n);
    }
    if (a.scale.defined()) d *= load_scale<S>(a.scale, c, n);
    if (act != Activation::none) d *= ActivationFn<act>::derivative(load_n(z + c, n));
    if (dbias) store_n(dbias + i, load_n(dbias + i, n) + d, n);
    if (dz) store_n(dz + c, d, n);
  });
}

template <class S, class W, Activation act>
void compute_dz(const LinearBackward& a) {
  using C = compute_t<S>;
  const int64_t rows = a.dy.sizes[0], cols = a.dy.sizes[1];
  if (!a.dbias.defined() && !a.dscale.defined()) {
    if (!a.dz.defined() || cols == 0) return;
    return parallel_for(rows, kGrainElements / cols + 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) dz_row<S, W, act>(a, row, 0, cols, nullptr, nullptr);
    });
  }
  // Each part sums its rows into its own slice; the slices are then added in order.
  C* const work = a.workspace.ptr<C>();
  const int64_t rows_per_part = ceil_div(rows, kLinearParts), blocks = ceil_div(cols, kSumCols);
  const int64_t grain = kGrainElements / (rows_per_part * smaller(cols, kSumCols) + 1) + 1;
  parallel_for(kLinearParts * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t part = item / blocks, from = item % blocks * kSumCols,
                    to = smaller(cols, from + kSumCols);
      C* const totals[2] = {work + part * 2 * cols + from, work + (part * 2 + 1) * cols + from};
      const auto bytes = static_cast<size_t>(to - from) * sizeof(C);
      std::memset(totals[0], 0, bytes);
      std::memset(totals[1], 0, bytes);
      const int64_t last = smaller(rows, (part + 1) * rows_per_part);
      for (int64_t row0 = part * rows_per_part; row0 < last; row0 += kSumRows) {
        C sums[2][kSumCols] = {};
        for (int64_t row = row0; row < smaller(last, row0 + kSumRows); ++row)
          dz_row<S, W, act>(a, row, from, to, a.dbias.defined() ? sums[0] : nullptr,
                            a.dscale.defined() ? sums[1] : nullptr);
        for (int which = 0; which < 2; ++which)
          for_lanes<C>(to - from, [&](int64_t i, auto n) {
            store_n(totals[which] + i, load_n(totals[which] + i, n) + load_n(sums[which] + i, n), n);
          });
      }
    }
  });
  for (int which = 0; which < 2; ++which) {
    const TensorView& out = which ? a.dscale : a.dbias;
    if (!out.defined()) continue;
    for_lanes<C>(cols, [&](int64_t i, auto n) {
      Vec<C> total{};
      for (int64_t part = 0; part < kLinearParts; ++part)
        total += load_n(work + (part * 2 + which) * cols + i, n);
      store_n(out.ptr<C>() + i, total, n);
    });
  }
}

// out = tile * act'(input); the tile itself where input is absent.
template <class S, Activation act>
void store_tile(const TensorView& out, const TensorView& input, const Tile<compute_t<S>>& t) {
  using C = compute_t<S>;
  for (int64_t r = 0; r < t.rows; ++r) {
    const C* const sums = t.data + r * kTileCols<C>;
    const S* const from = row_of<S>(input, t.row + r);
    S* const to = row_of<S>(out, t.row + r) + t.col;
    for_lanes<C>(t.cols, [&](int64_t c, auto n) {
      Vec<C> v = load_n(sums + c, n);
      if (act != Activation::none) v *= ActivationFn<act>::derivative(load_n(from + t.col + c, n));
      store_n(to + c, v, n);
    });
  }
}

template <class S>
void backward_products(const LinearBackward& a) {
  const TensorView& dz = a.dz.defined() ? a.dz : a.dy;
  const int64_t m = dz.sizes[0], n = dz.sizes[1];
  if (a.dx.defined()) {  // dz [M, N] by weight [N, K]
    const Gemm<S> g{m,
                    a.dx.sizes[1],
                    n,
                    {dz.ptr<S>(), dz.strides[0], 1},
                    {a.weight.ptr<S>(), a.weight.strides[1], a.weight.strides[0]}};
    dispatch_activation(a.input.defined() ? a.input_activation : Activation::none, [&](auto act) {
      gemm<S>(g, [&](const Tile<compute_t<S>>& t) { store_tile<S, act()>(a.dx, a.input, t); });
    });
  }
  if (a.dweight.defined()) {  // dz^T [N, M] by x [M, K]
    const Gemm<S> g{
        n, a.dweight.sizes[1], m, {dz.ptr<S>(), 1, dz.strides[0]}, {a.x.ptr<S>(), 1, a.x.strides[0]}};
    gemm<S>(g, [&](const Tile<compute_t<S>>& t) { store_tile<S, Activation::none>(a.dweight, {}, t); });
  }
}

}  // namespace
}  // namespace VA_ISA

namespace cpu {

template <>
void linear_forward<kIsa>(const LinearForward& a) {
  VA_ISA::dispatch_types(a.x.dtype, a.y.dtype, [&](auto s, auto w) {
    using S = typename decltype(s)::type;
    using W = typename decltype(w)::type;
    dispatch_activation(a.activation, [&](auto act) { VA_ISA::forward<S, W, act()>(a); });
  });
}

template <>
void linear_backward<kIsa>(const LinearBackward& a) {
  const DType x = a.dz.defined() ? a.dz.dtype : a.dy.dtype;
  VA_ISA::dispatch_types(x, a.dy.dtype, [&](auto s, auto w) {
    using S = typename decltype(s)::type;
    using W = typename decltype(w)::type;
    dispatch_activation(a.activation, [&](auto act) { VA_ISA::compute_dz<S, W, act()>(a); });
    VA_ISA::backward_products<S>(a);
  });
}

template <>
int64_t linear_packed_numel<kIsa>(const TensorView& weight) {
  int64_t numel = 0;
  dispatch_float(weight.dtype, "linear: weight", [&](auto t) {
    numel = VA_ISA::packed_numel<typename decltype(t)::type>(weight.sizes[0], weight.sizes[1]);
  });
  return numel;
}

template <>
void linear_pack<kIsa>(const TensorView& weight, const TensorView& packed) {
  dispatch_float(weight.dtype, "linear: weight", [&](auto t) {
    using S = typename decltype(t)::type;
    VA_ISA::pack_all<S>({weight.ptr<S>(), weight.strides[0], weight.strides[1]}, weight.sizes[0],
                        weight.sizes[1], packed.ptr<S>());
  });
}

}  // namespace cpu
}  // namespace va
