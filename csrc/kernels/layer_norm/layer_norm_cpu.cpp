// SPDX-License-Identifier: Apache-2.0
#include "kernels/layer_norm/layer_norm.h"

#include <algorithm>
#include <cmath>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "kernels/common/simd.h"

namespace va {
namespace VA_ISA {
namespace {

constexpr int64_t kGrainElements = 16384;  // below this a second thread costs more than it brings

int64_t row_grain(int64_t dim) { return kGrainElements / dim + 1; }

// T is the storage type, C the compute type.
template <class T, class C = compute_t<T>>
void forward_row(const LayerNormForward& a, int64_t row, int64_t dim) {
  const T* x = a.x.ptr<T>() + row * a.x.strides[0];
  T* y = a.y.ptr<T>() + row * a.y.strides[0];
  // s = x + residual, rounded to the storage type as a separate addition would.
  if (a.residual.defined()) {
    const T* r = a.residual.ptr<T>() + row * a.residual.strides[0];
    T* s = a.sum.ptr<T>() + row * a.sum.strides[0];
    for_lanes<C>(dim, [&](int64_t i, auto n) { store_n(s + i, load_n(x + i, n) + load_n(r + i, n), n); });
    x = s;
  }
  // x minus a value, 0 in the lanes past n.
  const auto centred = [&](int64_t i, auto n, C about) {
    Vec<C> d = load_n(x + i, n) - about;
    if (n < kLanes<C>)
      for (int64_t j = n; j < kLanes<C>; ++j) d[j] = 0;
    return d;
  };
  // Mean, from the distances to the first value: exact for a row of equal values, whose variance is then 0.
  const C first = load_scalar(x);
  Vec<C> total{};
  for_lanes<C>(dim, [&](int64_t i, auto n) { total += centred(i, n, first); });
  const C mean = first + reduce_add(total) / static_cast<C>(dim);
  // Variance, from centred values: no cancellation.
  Vec<C> squares{};
  for_lanes<C>(dim, [&](int64_t i, auto n) {
    const Vec<C> d = centred(i, n, mean);
    squares += d * d;
  });
  const C rstd = C(1) / std::sqrt(reduce_add(squares) / static_cast<C>(dim) + static_cast<C>(a.eps));
  // Scale and shift.
  const T* w = a.weight.defined() ? a.weight.ptr<T>() : nullptr;
  const T* b = a.bias.defined() ? a.bias.ptr<T>() : nullptr;
  for_lanes<C>(dim, [&](int64_t i, auto n) {
    Vec<C> v = (load_n(x + i, n) - mean) * rstd;
    if (w) v *= load_n(w + i, n);
    if (b) v += load_n(b + i, n);
    store_n(y + i, v, n);
  });
  if (a.mean.defined()) a.mean.ptr<C>()[row] = mean;
  if (a.rstd.defined()) a.rstd.ptr<C>()[row] = rstd;
}

// With xhat = (s - mean) rstd and g = dy * weight:
// dx = rstd (g - mean(g) - xhat mean(g xhat)) + dsum;  dweight = sum dy xhat;  dbias = sum dy.
template <class T, class C = compute_t<T>>
void backward_row(const LayerNormBackward& a, int64_t row, int64_t dim, C* dweight, C* dbias) {
  const T* dy = a.dy.ptr<T>() + row * a.dy.strides[0];
  const T* s = a.s.ptr<T>() + row * a.s.strides[0];
  T* dx = a.dx.ptr<T>() + row * a.dx.strides[0];
  const T* w = a.weight.defined() ? a.weight.ptr<T>() : nullptr;
  const T* dsum = a.dsum.defined() ? a.dsum.ptr<T>() + row * a.dsum.strides[0] : nullptr;
  const C mean = a.mean.ptr<C>()[row], rstd = a.rstd.ptr<C>()[row];

  Vec<C> sum_g{}, sum_gx{};
  for_lanes<C>(dim, [&](int64_t i, auto n) {
    const Vec<C> d = load_n(dy + i, n), xhat = (load_n(s + i, n) - mean) * rstd;
    const Vec<C> g = w ? d * load_n(w + i, n) : d;
    sum_g += g;
    sum_gx += g * xhat;  // lanes past n have g = 0
    if (dweight) store_n(dweight + i, load_n(dweight + i, n) + d * xhat, n);
    if (dbias) store_n(dbias + i, load_n(dbias + i, n) + d, n);
  });
  const C mean_g = reduce_add(sum_g) / static_cast<C>(dim);
  const C mean_gx = reduce_add(sum_gx) / static_cast<C>(dim);
  for_lanes<C>(dim, [&](int64_t i, auto n) {
    const Vec<C> d = load_n(dy + i, n), xhat = (load_n(s + i, n) - mean) * rstd;
    const Vec<C> g = w ? d * load_n(w + i, n) : d;
    Vec<C> v = rstd * (g - mean_g - xhat * mean_gx);
    if (dsum) v += load_n(dsum + i, n);
    store_n(dx + i, v, n);
  });
}

template <class T, class C = compute_t<T>>
void backward(const LayerNormBackward& a) {
  const int64_t rows = a.dy.sizes[0], dim = a.dy.sizes[1];
  if (!a.workspace.defined()) {
    return parallel_for(rows, row_grain(dim), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) backward_row<T, C>(a, row, dim, nullptr, nullptr);
    });
  }
  // Each part sums its rows into its own slice; the slices are then added in order.
  C* const work = a.workspace.ptr<C>();
  const int64_t parts = a.workspace.sizes[0], per_part = (rows + parts - 1) / parts;
  parallel_for(parts, row_grain(dim) / (per_part + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      C* const dweight = work + part * 2 * dim;
      C* const dbias = dweight + dim;
      std::memset(dweight, 0, static_cast<size_t>(2 * dim) * sizeof(C));
      const int64_t last = std::min(rows, (part + 1) * per_part);
      for (int64_t row = part * per_part; row < last; ++row) backward_row<T>(a, row, dim, dweight, dbias);
    }
  });
  for (int which = 0; which < 2; ++which) {
    const TensorView& out = which ? a.dbias : a.dweight;
    if (!out.defined()) continue;
    for_lanes<C>(dim, [&](int64_t i, auto n) {
      Vec<C> total{};
      for (int64_t part = 0; part < parts; ++part) total += load_n(work + (part * 2 + which) * dim + i, n);
      store_n(out.ptr<C>() + i, total, n);
    });
  }
}

}  // namespace
}  // namespace VA_ISA

namespace cpu {

template <>
void layer_norm_forward<kIsa>(const LayerNormForward& a) {
  const int64_t rows = a.x.sizes[0], dim = a.x.sizes[1];
  dispatch_float(a.x.dtype, "layer_norm: x", [&](auto t) {
    using T = typename decltype(t)::type;
    parallel_for(rows, VA_ISA::row_grain(dim), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) VA_ISA::forward_row<T>(a, row, dim);
    });
  });
}

template <>
void layer_norm_backward<kIsa>(const LayerNormBackward& a) {
  dispatch_float(a.dy.dtype, "layer_norm: dy",
                 [&](auto t) { VA_ISA::backward<typename decltype(t)::type>(a); });
}

}  // namespace cpu
}  // namespace va
