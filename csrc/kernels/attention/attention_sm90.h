// SPDX-License-Identifier: Apache-2.0
// Forward attention for sm_90a: TMA copies and WGMMA; in builds that name 90a. Compiled, but never yet run:
// the registers' and tiles' layouts were checked on the host.
#pragma once
#include "kernels/attention/attention.h"

namespace va::cuda {

// T = Half or BFloat16, head dim <= kD (64 or 128) and a multiple of 8, 16-byte aligned rows, no stride of 0.
template <class T, int kD>
void attention_forward_sm90(const AttentionForward& args, Stream stream);

}  // namespace va::cuda
