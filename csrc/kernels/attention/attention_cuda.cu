// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention_cuda.h"

#include <initializer_list>
#include <type_traits>

#include "core/dtype.h"
#include "kernels/common/vectors.cuh"

namespace va {
namespace {

using simt::aligned16;

// Calls f(type tag, padded head dim) where the tensor-core kernels can run; says whether it did.
template <class F>
bool with_tensor_cores(std::initializer_list<const TensorView*> tensors, F&& f) {
  const TensorView& q = **tensors.begin();
  const int64_t dim = q.sizes[3];
  if ((q.dtype != DType::f16 && q.dtype != DType::bf16) || dim % 8 != 0 || dim > 128) return false;
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

}  // namespace

void cuda::attention_forward(const AttentionForward& a, Stream stream) {
  const bool done = with_tensor_cores({&a.q, &a.k, &a.v, &a.y}, [&](auto type, auto dim) {
    attention_forward_mma<decltype(type), dim()>(a, stream);
  });
  if (!done) attention_forward_loop(a, stream);
}

void cuda::attention_backward(const AttentionBackward& a, Stream stream) {
  const bool done = with_tensor_cores(
      {&a.q, &a.k, &a.v, &a.y, &a.dy, &a.dq, &a.dk, &a.dv},
      [&](auto type, auto dim) { attention_backward_mma<decltype(type), dim()>(a, stream); });
  if (!done) attention_backward_loop(a, stream);
}

}  // namespace va
