// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention_backward.cuh"

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_sm90.cuh"

namespace va {

template <class T, int kD>
void cuda::attention_backward_sm90(const AttentionBackward& a, Stream stream) {
  using attention_mma::run_backward;
  using attention_sm90::Pair;
  constexpr int kStep = 32, kDkvStep = kD < 128 ? 32 : 16;  // more would spill
  if constexpr (kD == 64) {
    const int64_t rows = std::max(a.q.sizes[1], a.k.sizes[1]);
    if (rows > 128 && rows <= 224) return run_backward<Pair<T, kD, 224, 1>, kStep, kDkvStep>(a, stream);
  }
  run_backward<Pair<T, kD, 64, 2>, kStep, kDkvStep>(a, stream);
}

template void cuda::attention_backward_sm90<Half, 64>(const AttentionBackward&, Stream);
template void cuda::attention_backward_sm90<Half, 80>(const AttentionBackward&, Stream);
template void cuda::attention_backward_sm90<Half, 96>(const AttentionBackward&, Stream);
template void cuda::attention_backward_sm90<Half, 128>(const AttentionBackward&, Stream);
template void cuda::attention_backward_sm90<BFloat16, 64>(const AttentionBackward&, Stream);
template void cuda::attention_backward_sm90<BFloat16, 80>(const AttentionBackward&, Stream);
template void cuda::attention_backward_sm90<BFloat16, 96>(const AttentionBackward&, Stream);
template void cuda::attention_backward_sm90<BFloat16, 128>(const AttentionBackward&, Stream);

}  // namespace va
