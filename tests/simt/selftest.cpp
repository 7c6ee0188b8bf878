// SPDX-License-Identifier: Apache-2.0
#define VA_SIMT
#include "simt/selftest.h"

#include "core/check.h"
#include "kernels/common/hopper.cuh"

namespace va::simt {
namespace {

// Each thread writes one word, then reads its neighbour's in the next warp.
void exchange(bool barrier) {
  Shared<float> words = shared_memory<float>(0);
  const int me = thread_index();
  words[me] = static_cast<float>(me);
  if (barrier) sync_block();
  if (!barrier && warp_index() == 0) return;  // the second warp runs later here: it reads what is there
  const float next = words[(me + kWarp) % 64];
  check(next == static_cast<float>((me + kWarp) % 64), "simt: exchange got a wrong value");
}

void overwrite_while_read() {
  Shared<float> words = shared_memory<float>(0);
  const int me = thread_index();
  words[me] = 1.0f;
  sync_block();
  const float next = words[(me + kWarp) % 64];
  words[me] = next;  // the other warp may not have read it yet
}

void unfinished_copy() {
  alignas(16) static const float source[4] = {1, 2, 3, 4};
  Shared<float> words = shared_memory<float>(0);
  copy16_async<float>(words + thread_index() * 4, source, true);
  commit_copies();
  sync_block();
  (void)static_cast<float>(words[thread_index() * 4]);
}

// The copy engine brings 8 rows of 64 columns, every thread reads some of them, and they are brought again.
void copy_twice(int bytes_of_first, bool wait, bool barrier) {
  static const Half source[8 * 64] = {};
  const TensorMap map{source, {1, 8, 1, 64}, {512, 64, 64}, 8, 64};
  const Shared<Half> strip = shared_memory<Half>(0);
  const CopyBarrier copied = shared_memory<uint64_t>(1024);
  const auto copy = [&](int bytes) {
    if (thread_index() != 0) return;
    expect_bytes(copied, bytes);
    copy_strip(strip, map, copied, 0, 0, 0, 0);
  };
  if (thread_index() == 0) init_barrier(copied);
  sync_block();
  copy(bytes_of_first);
  if (wait) wait_for_phase(copied, 0);
  (void)static_cast<Half>(strip[thread_index()]);
  if (barrier) sync_block();
  copy(1024);
  wait_for_phase(copied, 1);
}

}  // namespace

void selftest(const std::string& mistake) {
  const auto run = [](auto kernel, int bytes) { launch("selftest", kernel, {2}, 64, bytes, 0); };
  if (mistake == "none") return run([] { exchange(true); }, 256);
  if (mistake == "missing barrier") return run([] { exchange(false); }, 256);
  if (mistake == "overwrite while read") return run([] { overwrite_while_read(); }, 256);
  if (mistake == "out of bounds") return run([] { exchange(true); }, 128);
  if (mistake == "read before write")
    return run([] { (void)static_cast<float>(shared_memory<float>(0)[0]); }, 256);
  if (mistake == "unfinished copy") return run([] { unfinished_copy(); }, 1024);
  if (mistake == "divergent barrier")
    return run(
        [] {
          if (thread_index() < 32) sync_block();
        },
        256);
  if (mistake == "divergent shuffle")
    return run(
        [] {
          if (lane_index() < 16) (void)shuffle(1, 0);
        },
        256);
  if (mistake == "misaligned") return run([] { store16(shared_memory<float>(4), Pack<float>{}); }, 256);
  if (mistake == "none on Hopper") return run([] { copy_twice(1024, true, true); }, 1032);
  if (mistake == "too few bytes") return run([] { copy_twice(2048, true, true); }, 1032);
  if (mistake == "strip not waited for") return run([] { copy_twice(1024, false, true); }, 1032);
  if (mistake == "strip overwritten while read") return run([] { copy_twice(1024, true, false); }, 1032);
  fail("selftest: unknown mistake " + mistake);
}

}  // namespace va::simt
