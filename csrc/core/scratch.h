// SPDX-License-Identifier: Apache-2.0
// One buffer per thread for the blocks that a kernel packs. It grows to the largest size ever asked for
// (callers keep that to a few MiB) and is freed with its thread. One user at a time: a second call of the
// same thread returns the same memory.
#pragma once
#include <cstddef>

namespace va {

void* thread_scratch(size_t bytes);  // aligned to 64 bytes, contents undefined

}  // namespace va
