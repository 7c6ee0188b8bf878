// SPDX-License-Identifier: Apache-2.0
#include "simt/emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/check.h"

namespace va::simt::emulator {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 128 * 1024;

// One 4-byte word of shared memory: who touched it since which barrier.
struct Word {
  bool written = false;
  int writer_warp = -1;
  uint64_t write_epoch = 0, read_epoch = 0;
  uint32_t reader_warps = 0;
};

struct Copy {
  int64_t to;
  unsigned char bytes[16];
};

// A fiber is started once through ucontext and then switched by setjmp / longjmp, which spares the
// system calls of swapcontext.
struct Thread {
  ucontext_t start;
  jmp_buf resume;
  bool started = false;
  std::unique_ptr<char[]> stack;
  Position position;
  bool done = false;
  std::vector<Copy> open_copies;         // issued, not yet committed
  std::deque<std::vector<Copy>> groups;  // committed, not yet waited for
};

struct Warp {
  const void* in[kWarp];
  void* out[kWarp];
  int arrived = 0, finished = 0;
  uint64_t generation = 0;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  std::vector<Word> words;
  uint64_t epoch = 1;  // counts barriers
  int arrived = 0, finished = 0;
  uint64_t progress = 0;
  const std::function<void()>* kernel = nullptr;
  std::exception_ptr error;
  jmp_buf scheduler;
  Thread* running = nullptr;
};

Block* block = nullptr;  // one launch at a time: see run()

void yield() {
  if (_setjmp(block->running->resume) == 0) _longjmp(block->scheduler, 1);
}

void resume(Thread& t) {
  if (_setjmp(block->scheduler) != 0) return;
  if (t.started) _longjmp(t.resume, 1);
  t.started = true;
  setcontext(&t.start);
}

Warp& my_warp() { return block->warps[static_cast<size_t>(block->running->position.thread / kWarp)]; }

std::string where() {
  const Position& p = block->running->position;
  return " (block " + std::to_string(p.block_x) + "," + std::to_string(p.block_y) + "," +
         std::to_string(p.block_z) + " thread " + std::to_string(p.thread) + ")";
}

void fiber_main() {
  try {
    (*block->kernel)();
  } catch (...) {
    if (!block->error) block->error = std::current_exception();
  }
  Thread* me = block->running;
  me->done = true;
  ++my_warp().finished;
  ++block->finished;
  ++block->progress;
  yield();
}

void run_block(Grid grid, int bx, int by, int bz, int threads, int shared_size,
               const std::function<void()>& kernel) {
  Block b;
  b.threads.resize(static_cast<size_t>(threads));
  b.warps.resize(static_cast<size_t>((threads + kWarp - 1) / kWarp));
  b.shared.assign(static_cast<size_t>(shared_size), 0xff);  // NaN in every floating type
  b.words.resize(static_cast<size_t>((shared_size + 3) / 4));
  b.kernel = &kernel;
  block = &b;
  for (int i = 0; i < threads; ++i) {
    Thread& t = b.threads[static_cast<size_t>(i)];
    t.position = {i, bx, by, bz, grid.x};
    t.stack.reset(new char[kStackBytes]);
    getcontext(&t.start);
    t.start.uc_stack.ss_sp = t.stack.get();
    t.start.uc_stack.ss_size = kStackBytes;
    t.start.uc_link = nullptr;
    makecontext(&t.start, fiber_main, 0);
  }
  while (b.finished < threads && !b.error) {
    const uint64_t before = b.progress;
    for (Thread& t : b.threads) {
      if (t.done || b.error) continue;
      b.running = &t;
      resume(t);
    }
    if (b.progress == before && b.finished < threads && !b.error) {
      block = nullptr;
      throw Error(
          "simt: deadlock: some threads wait at a barrier or warp collective that others never reach");
    }
  }
  block = nullptr;
  if (b.error) std::rethrow_exception(b.error);
}

}  // namespace

const Position& current() { return block->running->position; }

void run(Grid grid, int threads, int shared_size, const std::function<void()>& kernel) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (threads % kWarp != 0) throw Error("simt: the block must be whole warps");
  for (int z = 0; z < grid.z; ++z)
    for (int y = 0; y < grid.y; ++y)
      for (int x = 0; x < grid.x; ++x) run_block(grid, x, y, z, threads, shared_size, kernel);
}

void sync_block() {
  const uint64_t mine = block->epoch;
  ++block->progress;
  if (++block->arrived == static_cast<int>(block->threads.size())) {
    block->arrived = 0;
    ++block->epoch;
    return;
  }
  while (block->epoch == mine) yield();
}

void warp_collective(const void* in, void* out, Combine combine) {
  Warp& w = my_warp();
  if (w.finished > 0) throw Error("simt: a warp collective after a lane of the warp has returned" + where());
  const int lane = block->running->position.thread % kWarp;
  w.in[lane] = in;
  w.out[lane] = out;
  const uint64_t mine = w.generation;
  ++block->progress;
  if (++w.arrived == kWarp) {
    w.arrived = 0;
    if (combine) combine(w.in, w.out);
    ++w.generation;
    return;
  }
  while (w.generation == mine) yield();
}

void sync_warp() { warp_collective(nullptr, nullptr, nullptr); }

unsigned char* shared_bytes(int64_t offset, int bytes) {
  if (offset < 0 || offset + bytes > static_cast<int64_t>(block->shared.size())) {
    throw Error("simt: shared memory access at byte " + std::to_string(offset) + " of " +
                std::to_string(block->shared.size()) + where());
  }
  return block->shared.data() + offset;
}

void note_read(int64_t offset, int bytes) {
  const int warp = block->running->position.thread / kWarp;
  for (int64_t i = offset / 4; i <= (offset + bytes - 1) / 4; ++i) {
    Word& w = block->words[static_cast<size_t>(i)];
    if (!w.written)
      throw Error("simt: shared memory read before it was written, byte " + std::to_string(offset) + where());
    if (w.write_epoch == block->epoch && w.writer_warp != warp) {
      throw Error("simt: race: read of shared byte " + std::to_string(offset) +
                  " written by another warp since the last barrier" + where());
    }
    if (w.read_epoch != block->epoch) w.reader_warps = 0;
    w.read_epoch = block->epoch;
    w.reader_warps |= 1u << warp;
  }
}

void note_write(int64_t offset, int bytes) {
  shared_bytes(offset, bytes);
  const int warp = block->running->position.thread / kWarp;
  for (int64_t i = offset / 4; i <= (offset + bytes - 1) / 4; ++i) {
    Word& w = block->words[static_cast<size_t>(i)];
    if (w.read_epoch == block->epoch && (w.reader_warps & ~(1u << warp)) != 0) {
      throw Error("simt: race: write to shared byte " + std::to_string(offset) +
                  " read by another warp since the last barrier" + where());
    }
    // Different 16-bit halves of a word may belong to different warps; whole words may not.
    if (bytes >= 4 && w.written && w.write_epoch == block->epoch && w.writer_warp != warp) {
      throw Error("simt: race: two warps write shared byte " + std::to_string(offset) +
                  " between two barriers" + where());
    }
    w.written = true;
    w.writer_warp = warp;
    w.write_epoch = block->epoch;
  }
}

void begin_bulk_write(int64_t offset, int bytes) {
  shared_bytes(offset, bytes);
  for (int64_t i = offset / 4; i < (offset + bytes) / 4; ++i) {
    Word& w = block->words[static_cast<size_t>(i)];
    if (w.read_epoch == block->epoch && w.reader_warps != 0)
      throw Error("simt: race: copy to shared byte " + std::to_string(i * 4) +
                  " read since the last barrier" + where());
    w.written = false;
  }
}

void end_bulk_write(int64_t offset, int bytes) {
  for (int64_t i = offset / 4; i < (offset + bytes) / 4; ++i) {
    Word& w = block->words[static_cast<size_t>(i)];
    w.written = true;
    w.writer_warp = -1;
    w.write_epoch = 0;
  }
}

void wait_until(const std::function<bool()>& done) {
  while (!done()) yield();
  ++block->progress;
}

void check_aligned(const void* p, int bytes) {
  if (reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) != 0)
    throw Error("simt: misaligned " + std::to_string(bytes) + "-byte access to global memory" + where());
}
void check_aligned16(int64_t offset) {
  if (offset % 16 != 0) throw Error("simt: misaligned 16-byte access to shared memory" + where());
}

void copy_async_bytes(int64_t to, const void* from, bool valid) {
  Copy c{to, {}};
  if (valid) std::memcpy(c.bytes, from, 16);
  shared_bytes(to, 16);
  for (int64_t i = to / 4; i < to / 4 + 4; ++i)
    block->words[static_cast<size_t>(i)].written = false;  // until waited for
  block->running->open_copies.push_back(c);
}

void commit_copies() {
  block->running->groups.push_back(std::move(block->running->open_copies));
  block->running->open_copies.clear();
}

void wait_copies(int pending) {
  auto& groups = block->running->groups;
  while (static_cast<int>(groups.size()) > pending) {
    for (const Copy& c : groups.front()) {
      note_write(c.to, 16);
      std::memcpy(shared_bytes(c.to, 16), c.bytes, 16);
    }
    groups.pop_front();
  }
}

float bfloat16_to_float(uint16_t b) {
  const uint32_t bits = static_cast<uint32_t>(b) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

uint16_t float_to_bfloat16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if (f != f) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float half_to_float(uint16_t h) {
  const int exponent = (h >> 10) & 31, fraction = h & 0x3ff;
  const float sign = (h & 0x8000) ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
}

uint16_t float_to_half(float f) {
  const uint16_t sign = std::signbit(f) ? 0x8000 : 0;
  const float x = std::fabs(f);
  if (f != f) return sign | 0x7e00;
  if (x == 0) return sign;
  if (x >= 65520.0f) return sign | 0x7c00;
  int exponent = 0;
  std::frexp(x, &exponent);
  exponent = std::max(exponent - 1, -14);  // subnormals share the smallest exponent
  // The default rounding mode of nearbyint is to nearest even.
  const int units = static_cast<int>(std::nearbyint(std::ldexp(x, 10 - exponent)));
  return static_cast<uint16_t>(sign | (units + ((exponent + 14) << 10)));
}

}  // namespace va::simt::emulator
