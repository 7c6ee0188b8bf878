// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention_sm90.cuh"

template void va::cuda::attention_forward_sm90<va::Half, 64>(const AttentionForward&, Stream);
template void va::cuda::attention_forward_sm90<va::Half, 128>(const AttentionForward&, Stream);
