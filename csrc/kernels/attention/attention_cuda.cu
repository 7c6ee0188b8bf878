// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention_cuda.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "core/dtype.h"
#include "kernels/common/vectors.cuh"

namespace va {
namespace {

using simt::aligned16;

// Calls f(type tag, padded head dim) where the tensor-core kernels can run; says whether it did. They
// multiply the -inf of masked scores by the scale.
template <class F>
bool with_tensor_cores(double scale, std::initializer_list<const TensorView*> tensors, F&& f) {
  const TensorView& q = **tensors.begin();
  const int64_t dim = q.sizes[3];
  if ((q.dtype != DType::f16 && q.dtype != DType::bf16) || dim % 8 != 0 || dim > 128 || !(scale > 0))
    return false;
  for (const TensorView* x : tensors) {
    if (!aligned16(*x)) return false;
  }
  const auto by_dim = [&](auto type) {
    if (dim <= 32) return f(type, std::integral_constant<int, 32>{});
    if (dim <= 64) return f(type, std::integral_constant<int, 64>{});
    if (dim <= 80) return f(type, std::integral_constant<int, 80>{});
    if (dim <= 96) return f(type, std::integral_constant<int, 96>{});
    return f(type, std::integral_constant<int, 128>{});
  };
  if (q.dtype == DType::f16) {
    by_dim(Half{});
  } else {
    by_dim(BFloat16{});
  }
  return true;
}

#ifdef VA_ATTENTION_SM90
// No GPU has run the Hopper kernels yet, so VISION_ACCEL_HOPPER_ATTENTION=1 has to ask for them.
bool runs_on_hopper(std::initializer_list<const TensorView*> copied) {
  const char* const wanted = std::getenv("VISION_ACCEL_HOPPER_ATTENTION");
  if (!wanted || std::strcmp(wanted, "1") != 0) return false;
  for (const TensorView* x : copied) {
    if (x->numel() == 0) return false;
    for (int i = 0; i < 3; ++i) {
      if (x->sizes[i] > 1 && x->strides[i] <= 0) return false;  // TMA wants an address for each row
    }
  }
  return simt::capability_major() == 9;
}
#endif

// The tensor-core kernels of this GPU.
template <class T, int kD>
void forward_on_tensor_cores(const AttentionForward& a, Stream stream) {
#ifdef VA_ATTENTION_SM90
  constexpr int kHopperD = kD < 64 ? 64 : kD;
  if (runs_on_hopper({&a.k, &a.v})) return cuda::attention_forward_sm90<T, kHopperD>(a, stream);
#endif
  cuda::attention_forward_mma<T, kD>(a, stream);
}
template <class T, int kD>
void backward_on_tensor_cores(const AttentionBackward& a, Stream stream) {
#ifdef VA_ATTENTION_SM90
  constexpr int kHopperD = kD < 64 ? 64 : kD;
  if (runs_on_hopper({&a.q, &a.k, &a.v, &a.dy})) return cuda::attention_backward_sm90<T, kHopperD>(a, stream);
#endif
  cuda::attention_backward_mma<T, kD>(a, stream);
}

}  // namespace

void cuda::attention_forward(const AttentionForward& a, Stream stream) {
  if (attention_by_products(a.q, a.k)) return attention_forward_products(a, stream);
  const bool done = with_tensor_cores(a.scale, {&a.q, &a.k, &a.v, &a.y}, [&](auto type, auto dim) {
    forward_on_tensor_cores<decltype(type), dim()>(a, stream);
  });
  if (!done) attention_forward_loop(a, stream);
}

void cuda::attention_backward(const AttentionBackward& a, Stream stream) {
  if (attention_by_products(a.q, a.k)) return attention_backward_products(a, stream);
  const bool done = with_tensor_cores(
      a.scale, {&a.q, &a.k, &a.v, &a.y, &a.dy, &a.dq, &a.dk, &a.dv},
      [&](auto type, auto dim) { backward_on_tensor_cores<decltype(type), dim()>(a, stream); });
  if (!done) attention_backward_loop(a, stream);
}

}  // namespace va
