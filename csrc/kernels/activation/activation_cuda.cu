// SPDX-License-Identifier: Apache-2.0
#include "kernels/activation/activation.h"

#include "core/dispatch.h"
#include "kernels/common/activation_math.cuh"
#include "kernels/common/vectors.cuh"

namespace va {
namespace {

using namespace simt;

constexpr int kThreads = 256;

// kSize elements a thread at a time; the elements left over at the end one by one, with the same arithmetic.
template <class T, int kSize, bool kBackward>
VA_KERNEL(kThreads)
activation_kernel(const T* dy, const T* x, T* out, int64_t count, Activation kind) {
  using C = compute_t<T>;
  constexpr bool kFast = sizeof(T) == 2;
  const int64_t me = static_cast<int64_t>(block_x()) * kThreads + thread_index();
  const int64_t step = static_cast<int64_t>(grid_x()) * kThreads;
  const auto apply = [&](int64_t i, auto size) {
    C v[size()];
    load_values(v, x + i);
    if constexpr (kBackward) {
      C g[size()];
      load_values(g, dy + i);
      gpu::times_derivative<kFast>(kind, v, g);
      store_values(out + i, g);
    } else {
      gpu::activate<kFast>(kind, v);
      store_values(out + i, v);
    }
  };
  for (int64_t i = me * kSize; i + kSize <= count; i += step * kSize) {
    apply(i, std::integral_constant<int, kSize>{});
  }
  const int64_t tail = count / kSize * kSize + me;
  if (tail < count) apply(tail, std::integral_constant<int, 1>{});
}

template <bool kBackward>
void run(const TensorView& dy, const TensorView& x, const TensorView& out, Activation kind, Stream stream) {
  const auto aligned = [](const TensorView& v) { return reinterpret_cast<uintptr_t>(v.data) % 16 == 0; };
  dispatch_float(x.dtype, "activation: x", [&](auto t) {
    using T = typename decltype(t)::type;
    dispatch_vector<T>(aligned(dy) && aligned(x) && aligned(out), [&](auto size) {
      launch("activation", activation_kernel<T, size(), kBackward>,
             {blocks_for(x.numel(), kThreads * size())}, kThreads, 0, stream, dy.ptr<const T>(),
             x.ptr<const T>(), out.ptr<T>(), x.numel(), kind);
    });
  });
}

}  // namespace

void cuda::activation_forward(const ActivationForward& a, Stream stream) {
  run<false>({}, a.x, a.y, a.kind, stream);
}

void cuda::activation_backward(const ActivationBackward& a, Stream stream) {
  run<true>(a.dy, a.x, a.dx, a.kind, stream);
}

}  // namespace va
