// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>

namespace va {

// Working memory of the calling thread, aligned to a cache line: for packed operands and tiles of a few
// hundred KiB, bounded whatever the problem. It keeps its largest size until the thread ends, and the next
// call on the same thread hands out the same memory.
void* thread_scratch(size_t bytes);

}  // namespace va
