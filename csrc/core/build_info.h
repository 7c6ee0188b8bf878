// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace va {

const char* version();
const char* cuda_status();  // one sentence: which archs are in this build, or why there are none

}  // namespace va
