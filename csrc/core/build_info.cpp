// SPDX-License-Identifier: Apache-2.0
#include "core/build_info.h"

namespace va {

const char* version() { return VA_VERSION; }
const char* cuda_status() { return VA_CUDA_STATUS; }

#ifdef VA_WITH_SIMT
namespace {
bool simt = false;
}
bool simt_mode() { return simt; }
void set_simt_mode(bool on) { simt = on; }
#endif

}  // namespace va
