// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention_forward.cuh"

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_sm80.cuh"

namespace va {

template <class T, int kD>
void cuda::attention_forward_mma(const AttentionForward& a, Stream stream) {
  using attention_mma::run_forward;
  using attention_sm80::Pair;
  const int64_t keys = a.k.sizes[1];
  if (keys <= 64) return run_forward<Pair<T, kD, 64, 1>>(a, stream);
  if constexpr (kD <= 64) {  // the scores of so many keys fit into registers
    if (keys <= 80) return run_forward<Pair<T, kD, 80, 1>>(a, stream);
    if (keys <= 144) return run_forward<Pair<T, kD, 144, 1>>(a, stream);
    if (keys <= 208) return run_forward<Pair<T, kD, 208, 1>>(a, stream);
    // 272 at a time would spill; they stay in shared memory, of which sm_89 has room for one such block.
    if (keys <= 272) return run_forward<Pair<T, kD, 272, 1>, 144>(a, stream);
    run_forward<Pair<T, kD, 96, 2>>(a, stream);
  } else {
    run_forward<Pair<T, kD, 64, 2>>(a, stream);
  }
}

template void cuda::attention_forward_mma<Half, 32>(const AttentionForward&, Stream);
template void cuda::attention_forward_mma<Half, 64>(const AttentionForward&, Stream);
template void cuda::attention_forward_mma<Half, 80>(const AttentionForward&, Stream);
template void cuda::attention_forward_mma<Half, 96>(const AttentionForward&, Stream);
template void cuda::attention_forward_mma<Half, 128>(const AttentionForward&, Stream);
template void cuda::attention_forward_mma<BFloat16, 32>(const AttentionForward&, Stream);
template void cuda::attention_forward_mma<BFloat16, 64>(const AttentionForward&, Stream);
template void cuda::attention_forward_mma<BFloat16, 80>(const AttentionForward&, Stream);
template void cuda::attention_forward_mma<BFloat16, 96>(const AttentionForward&, Stream);
template void cuda::attention_forward_mma<BFloat16, 128>(const AttentionForward&, Stream);

}  // namespace va
