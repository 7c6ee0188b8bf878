// SPDX-License-Identifier: Apache-2.0
#include "core/scratch.h"

#include <memory>
#include <new>

namespace va {
namespace {

constexpr std::align_val_t kLine{64};

struct Free {
  void operator()(void* p) const { ::operator delete(p, kLine); }
};

struct Scratch {
  std::unique_ptr<void, Free> data;
  size_t size = 0;
};

thread_local Scratch scratch;

}  // namespace

void* thread_scratch(size_t bytes) {
  if (scratch.size < bytes) {
    scratch.size = 0;
    scratch.data.reset();
    scratch.data.reset(::operator new(bytes, kLine));
    scratch.size = bytes;
  }
  return scratch.data.get();
}

}  // namespace va
