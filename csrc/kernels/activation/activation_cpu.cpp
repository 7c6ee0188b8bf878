// SPDX-License-Identifier: Apache-2.0
#include "kernels/activation/activation.h"

#include "core/dispatch.h"
#include "core/parallel.h"
#include "kernels/common/activation_math.h"

namespace va {
namespace VA_ISA {
namespace {

constexpr int64_t kGrainElements = 16384;

template <class T, Activation kind, class C = compute_t<T>>
void forward(const T* x, T* y, int64_t count) {
  for_lanes<C>(count,
               [&](int64_t i, auto n) { store_n(y + i, ActivationFn<kind>::value(load_n(x + i, n)), n); });
}

template <class T, Activation kind, class C = compute_t<T>>
void backward(const T* dy, const T* x, T* dx, int64_t count) {
  for_lanes<C>(count, [&](int64_t i, auto n) {
    store_n(dx + i, load_n(dy + i, n) * ActivationFn<kind>::derivative(load_n(x + i, n)), n);
  });
}

}  // namespace
}  // namespace VA_ISA

namespace cpu {

template <>
void activation_forward<kIsa>(const ActivationForward& a) {
  dispatch_float(a.x.dtype, "activation: x", [&](auto t) {
    using T = typename decltype(t)::type;
    dispatch_activation(a.kind, [&](auto kind) {
      parallel_for(a.x.numel(), VA_ISA::kGrainElements, [&](int64_t begin, int64_t end) {
        VA_ISA::forward<T, kind()>(a.x.ptr<T>() + begin, a.y.ptr<T>() + begin, end - begin);
      });
    });
  });
}

template <>
void activation_backward<kIsa>(const ActivationBackward& a) {
  dispatch_float(a.x.dtype, "activation: x", [&](auto t) {
    using T = typename decltype(t)::type;
    dispatch_activation(a.kind, [&](auto kind) {
      parallel_for(a.x.numel(), VA_ISA::kGrainElements, [&](int64_t begin, int64_t end) {
        VA_ISA::backward<T, kind()>(a.dy.ptr<T>() + begin, a.x.ptr<T>() + begin, a.dx.ptr<T>() + begin,
                                    end - begin);
      });
    });
  });
}

}  // namespace cpu
}  // namespace va
