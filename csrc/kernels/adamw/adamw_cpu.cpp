// SPDX-License-Identifier: Apache-2.0
#include "kernels/adamw/adamw.h"

#include "core/dispatch.h"
#include "core/parallel.h"
#include "kernels/common/math.h"

namespace va {
namespace VA_ISA {
namespace {

template <class C>
struct Factors {
  C grad_scale, decay, one_minus_beta1, beta2, one_minus_beta2, step_size, root_correction, eps;
};

template <class C>
Factors<C> factors(const AdamW& a) {
  const double step = static_cast<double>(a.step);
  return {static_cast<C>(a.grad_scale),
          static_cast<C>(1 - a.lr * a.weight_decay),
          static_cast<C>(1 - a.beta1),
          static_cast<C>(a.beta2),
          static_cast<C>(1 - a.beta2),
          static_cast<C>(a.lr / (1 - std::pow(a.beta1, step))),
          static_cast<C>(1 / std::sqrt(1 - std::pow(a.beta2, step))),
          static_cast<C>(a.eps)};
}

template <class T, class C = compute_t<T>>
void update(const Factors<C>& f, T* param, const T* grad, C* exp_avg, C* exp_avg_sq, int64_t count) {
  for_lanes<C>(count, [&](int64_t i, auto n) {
    const Vec<C> g = load_n(grad + i, n) * f.grad_scale;
    Vec<C> m = load_n(exp_avg + i, n), v = load_n(exp_avg_sq + i, n);
    m += f.one_minus_beta1 * (g - m);
    v = v * f.beta2 + f.one_minus_beta2 * (g * g);
    const Vec<C> p = load_n(param + i, n) * f.decay;
    store_n(exp_avg + i, m, n);
    store_n(exp_avg_sq + i, v, n);
    store_n(param + i, p - f.step_size * (m / (vsqrt(v) * f.root_correction + f.eps)), n);
  });
}

typedef double Wide __attribute__((vector_size(2 * VA_SIMD_BYTES)));
struct DoublePair {
  Vec<double> low, high;
};
VA_INLINE DoublePair widen(Vec<float> v) {
  const Wide w = __builtin_convertvector(v, Wide);
  DoublePair p;
  std::memcpy(&p, &w, sizeof(p));
  return p;
}
VA_INLINE DoublePair widen(Vec<double> v) { return {v, Vec<double>{}}; }

// The sum of squares in double: large gradients do not overflow, and the order of f32 sums does not show.
template <class T, class C = compute_t<T>>
double sum_of_squares(const T* x, int64_t count) {
  DoublePair total{};  // two vectors: as one of twice the size GCC keeps it in memory
  for_lanes<C>(count, [&](int64_t i, auto n) {
    const DoublePair v = widen(load_n(x + i, n));
    total.low += v.low * v.low;
    total.high += v.high * v.high;
  });
  return reduce_add(total.low + total.high);
}

// body(tensor, first element, count) for the chunks [begin, end) of the list.
template <class F>
void for_chunks(const AdamWList& list, int64_t begin, int64_t end, F&& body) {
  int64_t low = 0, high = list.count - 1;  // the last tensor that starts at or before `begin`
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (list.tensors[middle].first_chunk <= begin) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const AdamWTensor* t = list.tensors + low;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    if (t + 1 < list.tensors + list.count && t[1].first_chunk == chunk) ++t;
    const int64_t first = (chunk - t->first_chunk) * kAdamWChunk, left = t->numel - first;
    body(*t, first, left < kAdamWChunk ? left : kAdamWChunk);
  }
}

}  // namespace
}  // namespace VA_ISA

namespace cpu {

template <>
void adamw<kIsa>(const AdamW& a, const AdamWList& list) {
  const auto f32 = VA_ISA::factors<float>(a);
  const auto f64 = VA_ISA::factors<double>(a);
  parallel_for(list.chunks, 1, [&](int64_t begin, int64_t end) {
    VA_ISA::for_chunks(list, begin, end, [&](const AdamWTensor& t, int64_t first, int64_t count) {
      dispatch_float(t.dtype, "adamw: params", [&](auto tag) {
        using T = typename decltype(tag)::type;
        using C = compute_t<T>;
        const auto at = [&](void* p, auto zero) { return static_cast<decltype(zero)*>(p) + first; };
        if constexpr (std::is_same_v<C, double>) {
          VA_ISA::update<T>(f64, at(t.param, T{}), at(t.grad, T{}), at(t.exp_avg, C{}), at(t.exp_avg_sq, C{}),
                            count);
        } else {
          VA_ISA::update<T>(f32, at(t.param, T{}), at(t.grad, T{}), at(t.exp_avg, C{}), at(t.exp_avg_sq, C{}),
                            count);
        }
      });
    });
  });
}

template <>
void grad_norm<kIsa>(const GradNorm& a, const AdamWList& list) {
  double parts[kGradNormParts] = {};
  const int64_t per_part = (list.chunks + kGradNormParts - 1) / kGradNormParts;
  parallel_for(kGradNormParts, 4 / (per_part + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * per_part, last = first + per_part;
      if (first >= list.chunks) break;
      VA_ISA::for_chunks(list, first, last < list.chunks ? last : list.chunks,
                         [&](const AdamWTensor& t, int64_t begin, int64_t count) {
                           dispatch_float(t.dtype, "grad_norm: grads", [&](auto tag) {
                             using T = typename decltype(tag)::type;
                             parts[part] +=
                                 VA_ISA::sum_of_squares(static_cast<const T*>(t.grad) + begin, count);
                           });
                         });
    }
  });
  double total = 0;
  for (const double part : parts) total += part;
  *a.norm.ptr<double>() = std::sqrt(total);
}

}  // namespace cpu
}  // namespace va
