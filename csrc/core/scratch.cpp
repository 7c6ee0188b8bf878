// SPDX-License-Identifier: Apache-2.0
#include "core/scratch.h"

#include <new>

namespace va {
namespace {

constexpr std::align_val_t kAlignment{64};

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
  ~Buffer() { ::operator delete(data, kAlignment); }
};

}  // namespace

void* thread_scratch(size_t bytes) {
  static thread_local Buffer buffer;
  if (buffer.bytes < bytes) {
    ::operator delete(buffer.data, kAlignment);
    buffer.data = nullptr, buffer.bytes = 0;  // in case the allocation throws
    buffer.data = ::operator new(bytes, kAlignment);
    buffer.bytes = bytes;
  }
  return buffer.data;
}

}  // namespace va
