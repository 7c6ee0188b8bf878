// SPDX-License-Identifier: Apache-2.0
// A small SIMT machine for kernels written on kernels/common/simt.cuh: the threads of a block are fibers
// that run until they reach a barrier or a warp collective. Slow and strict. It reports, as va::Error:
//   - shared memory read before it was written, or outside the block's allocation;
//   - a race: shared memory that another warp wrote (or read, before a write) since the last barrier;
//   - a warp collective or a barrier that some threads never reach;
//   - misaligned accesses of 4 and 16 bytes; asynchronous copies read before they were waited for.
#pragma once
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#include "core/dtype.h"

namespace va::simt::emulator {

struct Position {
  int thread, block_x, block_y, block_z, grid_x;
};
struct Grid {
  int x, y, z;
};

const Position& current();
void run(Grid grid, int threads, int shared_bytes, const std::function<void()>& kernel);

void sync_block();
void sync_warp();

// All lanes of the warp deposit `in`; the last to arrive calls combine(in[32], out[32]); each gets its out.
using Combine = void (*)(const void* const* in, void* const* out);
void warp_collective(const void* in, void* out, Combine combine);

// Shared memory, by byte offset in the block's allocation.
void note_read(int64_t offset, int bytes);
void note_write(int64_t offset, int bytes);
unsigned char* shared_bytes(int64_t offset, int bytes);  // throws when outside
void begin_bulk_write(int64_t offset, int bytes);        // by a copy engine: unreadable until end_bulk_write
void end_bulk_write(int64_t offset, int bytes);
void wait_until(const std::function<bool()>& done);
void check_aligned(const void* p, int bytes);
void check_aligned16(int64_t offset);

void copy_async_bytes(int64_t to, const void* from, bool valid);
void commit_copies();
void wait_copies(int pending);

float half_to_float(uint16_t h);
uint16_t float_to_half(float f);
float bfloat16_to_float(uint16_t b);
uint16_t float_to_bfloat16(float f);

template <class T>
class Shared {
 public:
  explicit Shared(int64_t offset) : offset_(offset) {}

  class Element {
   public:
    explicit Element(int64_t offset) : offset_(offset) {}
    operator T() const {
      T x;
      std::memcpy(&x, shared_bytes(offset_, sizeof(T)), sizeof(T));
      note_read(offset_, sizeof(T));
      return x;
    }
    Element& operator=(T x) {
      note_write(offset_, sizeof(T));
      std::memcpy(shared_bytes(offset_, sizeof(T)), &x, sizeof(T));
      return *this;
    }
    Element& operator=(const Element& o) { return *this = static_cast<T>(o); }
    Element& operator+=(T x) { return *this = static_cast<T>(*this) + x; }

   private:
    int64_t offset_;
  };

  Element operator[](int64_t i) const { return Element(offset_ + i * static_cast<int64_t>(sizeof(T))); }
  Shared operator+(int64_t i) const { return Shared(offset_ + i * static_cast<int64_t>(sizeof(T))); }
  int64_t offset() const { return offset_; }

  template <class P>
  P load_pack() const {
    P p;
    check_aligned16(offset_);
    std::memcpy(&p, shared_bytes(offset_, 16), 16);
    note_read(offset_, 16);
    return p;
  }
  template <class P>
  void store_pack(const P& p) const {
    check_aligned16(offset_);
    note_write(offset_, 16);
    std::memcpy(shared_bytes(offset_, 16), &p, 16);
  }

 private:
  int64_t offset_;
};

template <class T>
void copy_async(Shared<T> to, const T* from, bool valid) {
  check_aligned16(to.offset());
  if (valid) check_aligned(from, 16);
  copy_async_bytes(to.offset(), from, valid);
}

template <class T>
T shuffle(T x, int lane) {
  struct In {
    T x;
    int lane;
  } in{x, lane};
  T out;
  warp_collective(&in, &out, [](const void* const* in, void* const* out) {
    for (int i = 0; i < 32; ++i) {
      const int from = static_cast<const In*>(in[i])->lane & 31;
      *static_cast<T*>(out[i]) = static_cast<const In*>(in[from])->x;
    }
  });
  return out;
}

inline uint32_t ballot(bool yes) {
  uint32_t votes = 0;
  warp_collective(&yes, &votes, [](const void* const* in, void* const* out) {
    uint32_t all = 0;
    for (int i = 0; i < 32; ++i) all |= static_cast<uint32_t>(*static_cast<const bool*>(in[i])) << i;
    for (int i = 0; i < 32; ++i) *static_cast<uint32_t*>(out[i]) = all;
  });
  return votes;
}

void read_matrices_at(uint32_t (&r)[4], int64_t row_offset, bool transpose);
template <bool kTranspose, class T>
void read_matrices(uint32_t (&r)[4], Shared<T> row) {
  static_assert(sizeof(T) == 2 || !kTranspose);
  read_matrices_at(r, row.offset(), kTranspose);
}

void mma_16x8x8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_16x8x16_any(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     float (*convert)(uint16_t));
template <class T>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  mma_16x8x16_any(d, a, b0, b1, std::is_same_v<T, Half> ? &half_to_float : &bfloat16_to_float);
}

}  // namespace va::simt::emulator
