// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace va {

const char* version();
const char* cuda_status();  // one sentence: which archs are in this build, or why there are none

#ifdef VA_WITH_SIMT
bool simt_mode();  // test builds: run CUDA kernels on CPU tensors through the emulator
void set_simt_mode(bool on);
#else
constexpr bool simt_mode() { return false; }
#endif

}  // namespace va
