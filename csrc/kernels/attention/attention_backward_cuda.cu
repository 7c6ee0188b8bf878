// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention_backward.cuh"

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_sm80.cuh"

namespace va {

template <class T, int kD>
void cuda::attention_backward_mma(const AttentionBackward& a, Stream stream) {
  // The other side's rows per step; more would spill.
  constexpr int kDqStep = kD <= 64 ? 64 : (kD <= 96 ? 32 : 16), kDkvStep = kD <= 64 ? 32 : 16;
  attention_mma::run_backward<attention_sm80::Pair<T, kD, 64, 2>, kDqStep, kDkvStep>(a, stream);
}

template void cuda::attention_backward_mma<Half, 32>(const AttentionBackward&, Stream);
template void cuda::attention_backward_mma<Half, 64>(const AttentionBackward&, Stream);
template void cuda::attention_backward_mma<Half, 80>(const AttentionBackward&, Stream);
template void cuda::attention_backward_mma<Half, 96>(const AttentionBackward&, Stream);
template void cuda::attention_backward_mma<Half, 128>(const AttentionBackward&, Stream);
template void cuda::attention_backward_mma<BFloat16, 32>(const AttentionBackward&, Stream);
template void cuda::attention_backward_mma<BFloat16, 64>(const AttentionBackward&, Stream);
template void cuda::attention_backward_mma<BFloat16, 80>(const AttentionBackward&, Stream);
template void cuda::attention_backward_mma<BFloat16, 96>(const AttentionBackward&, Stream);
template void cuda::attention_backward_mma<BFloat16, 128>(const AttentionBackward&, Stream);

}  // namespace va
