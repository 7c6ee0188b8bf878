// SPDX-License-Identifier: Apache-2.0
#include "core/build_info.h"

namespace va {

const char* version() { return VA_VERSION; }
const char* cuda_status() { return VA_CUDA_STATUS; }

}  // namespace va
