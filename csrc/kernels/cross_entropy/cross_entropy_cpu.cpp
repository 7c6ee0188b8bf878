// SPDX-License-Identifier: Apache-2.0
#include "kernels/cross_entropy/cross_entropy.h"

#include "core/dispatch.h"
#include "core/parallel.h"
#include "kernels/common/math.h"

namespace va {
namespace VA_ISA {
namespace {

constexpr int64_t kGrainElements = 16384;

int64_t row_grain(int64_t classes) { return kGrainElements / (classes + 1) + 1; }

// v with `fill` in the lanes from n on.
template <class V>
VA_INLINE V pad(V v, int64_t n, Element<V> fill) {
  for (int64_t i = n; i < kLanes<Element<V>>; ++i) v[i] = fill;
  return v;
}

// The rows that count: all of them for probabilities.
template <class A>
int64_t counted_rows(const A& a) {
  const int64_t rows = a.logits.sizes[0];
  if (a.target.dtype != DType::i64) return rows;
  int64_t count = 0;
  for (int64_t i = 0; i < rows; ++i) count += a.target.template ptr<int64_t>()[i] != a.ignore_index;
  return count;
}

// T is the storage type of the logits, C the compute type. Returns the loss of a row and sets its lse.
template <class T, class C = compute_t<T>>
C forward_row(const CrossEntropyForward& a, int64_t row, int64_t classes, C* lse) {
  const T* x = a.logits.ptr<T>() + row * a.logits.strides[0];
  // Everything is relative to the row's maximum.
  Vec<C> top = splat(-static_cast<C>(INFINITY));
  for_lanes<C>(classes, [&](int64_t i, auto n) {
    const Vec<C> v = pad(load_n(x + i, n), n, -static_cast<C>(INFINITY));
    top = v > top ? v : top;
  });
  const C max = reduce_max(top);
  // s = sum exp(x - max).
  Vec<C> sum{};
  for_lanes<C>(classes, [&](int64_t i, auto n) { sum += pad(vexp(load_n(x + i, n) - max), n, 0); });
  const C log_sum = std::log(reduce_add(sum));
  *lse = max + log_sum;

  const C keep = static_cast<C>(1 - a.label_smoothing), share = static_cast<C>(a.label_smoothing / classes);
  if (a.target.dtype == DType::i64) {
    const int64_t target = a.target.ptr<int64_t>()[row];
    if (target == a.ignore_index) return 0;
    const C loss = log_sum - (load_scalar(x + target) - max);
    if (a.label_smoothing == 0) return loss;
    Vec<C> total{};  // of -logp over all classes
    for_lanes<C>(classes, [&](int64_t i, auto n) { total += pad(log_sum - (load_n(x + i, n) - max), n, 0); });
    return keep * loss + share * reduce_add(total);
  }
  const C* t = a.target.ptr<C>() + row * classes;
  Vec<C> total{};
  for_lanes<C>(classes, [&](int64_t i, auto n) {
    total += pad((load_n(t + i, n) * keep + share) * (log_sum - (load_n(x + i, n) - max)), n, 0);
  });
  return reduce_add(total);
}

template <class T, class C = compute_t<T>>
void forward(const CrossEntropyForward& a) {
  const int64_t rows = a.logits.sizes[0], classes = a.logits.sizes[1];
  C* const losses = (a.reduction == Reduction::none ? a.loss : a.losses).ptr<C>();
  C* const lse = a.lse.ptr<C>();
  parallel_for(rows, row_grain(classes), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) losses[row] = forward_row<T>(a, row, classes, lse + row);
  });
  if (a.reduction == Reduction::none) return;
  double total = 0;  // in row order, for any number of threads
  for (int64_t row = 0; row < rows; ++row) total += losses[row];
  if (a.reduction == Reduction::mean) total /= static_cast<double>(counted_rows(a));
  *a.loss.ptr<C>() = static_cast<C>(total);
}

// With t' = (1 - e) t + e / K and g the gradient of the row's loss:
// dlogits = g (softmax sum(t') - t'),  dtarget = -g (1 - e) logp.
template <class T, class C = compute_t<T>>
void backward_row(const CrossEntropyBackward& a, int64_t row, int64_t classes, C g) {
  const T* x = a.logits.ptr<T>() + row * a.logits.strides[0];
  const C lse = a.lse.ptr<C>()[row];
  const C keep = static_cast<C>(1 - a.label_smoothing), share = static_cast<C>(a.label_smoothing / classes);
  const bool indices = a.target.dtype == DType::i64;
  const C* t = indices ? nullptr : a.target.ptr<C>() + row * classes;
  if (a.dtarget.defined()) {
    C* dt = a.dtarget.ptr<C>() + row * a.dtarget.strides[0];
    const C scale = g * keep;
    for_lanes<C>(classes, [&](int64_t i, auto n) { store_n(dt + i, scale * (lse - load_n(x + i, n)), n); });
  }
  if (!a.dlogits.defined()) return;
  T* dx = a.dlogits.ptr<T>() + row * a.dlogits.strides[0];
  if (indices) {
    const int64_t target = a.target.ptr<int64_t>()[row];
    if (target == a.ignore_index) {
      for_lanes<C>(classes, [&](int64_t i, auto n) { store_n(dx + i, Vec<C>{}, n); });
      return;
    }
    for_lanes<C>(classes,
                 [&](int64_t i, auto n) { store_n(dx + i, g * (vexp(load_n(x + i, n) - lse) - share), n); });
    const Vec<C> p = vexp(splat(load_scalar(x + target) - lse));
    store_scalar(dx + target, g * (p[0] - share - keep));
    return;
  }
  Vec<C> total{};
  for_lanes<C>(classes, [&](int64_t i, auto n) { total += pad(load_n(t + i, n) * keep + share, n, 0); });
  const C sum = reduce_add(total);
  for_lanes<C>(classes, [&](int64_t i, auto n) {
    const Vec<C> p = vexp(load_n(x + i, n) - lse);
    store_n(dx + i, g * (p * sum - (load_n(t + i, n) * keep + share)), n);
  });
}

template <class T, class C = compute_t<T>>
void backward(const CrossEntropyBackward& a) {
  const int64_t rows = a.logits.sizes[0], classes = a.logits.sizes[1];
  const C* dloss = a.dloss.ptr<C>();
  const C mean_of = a.reduction == Reduction::mean ? static_cast<C>(counted_rows(a)) : C(1);
  parallel_for(rows, row_grain(classes), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const C g = a.reduction == Reduction::none ? dloss[row] : dloss[0] / mean_of;
      backward_row<T>(a, row, classes, g);
    }
  });
}

}  // namespace
}  // namespace VA_ISA

namespace cpu {

template <>
void cross_entropy_forward<kIsa>(const CrossEntropyForward& a) {
  dispatch_float(a.logits.dtype, "cross_entropy: logits",
                 [&](auto t) { VA_ISA::forward<typename decltype(t)::type>(a); });
}

template <>
void cross_entropy_backward<kIsa>(const CrossEntropyBackward& a) {
  dispatch_float(a.logits.dtype, "cross_entropy: logits",
                 [&](auto t) { VA_ISA::backward<typename decltype(t)::type>(a); });
}

}  // namespace cpu
}  // namespace va
