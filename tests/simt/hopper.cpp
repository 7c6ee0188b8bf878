// SPDX-License-Identifier: Apache-2.0
#include "simt/hopper.h"

#include <string>
#include <vector>

#include "core/check.h"

namespace va::simt::emulator {
namespace {

// A barrier in shared memory.
struct State {
  int32_t missing;  // bytes of the phase that have not come
  int32_t phase;    // the one that goes on
};
static_assert(sizeof(State) == sizeof(uint64_t));
State& state_of(int64_t barrier) { return *reinterpret_cast<State*>(shared_bytes(barrier, sizeof(State))); }

// What has landed, but nobody has waited for.
struct Landed {
  int64_t barrier, offset;
  int bytes;
};
std::vector<Landed> landed;  // one launch at a time

// Byte offset of an element of a strip: the hardware permutes by the bits of the address itself.
int64_t swizzled(int64_t strip, int64_t row, int64_t column, int width) {
  const int64_t at = strip + row * width * 2 + column * 2;
  return at ^ ((at >> 7 & (width / 8 - 1)) << 4);
}

// What the hardware asks of a map and of the place of a strip.
void check_copy(int64_t to, const TensorMap& map) {
  bool aligned = reinterpret_cast<uintptr_t>(map.data) % 16 == 0;
  for (int i = 0; i < 3; ++i) aligned = aligned && (map.sizes[i] == 1 || map.strides[i] * 2 % 16 == 0);
  if (!aligned) throw Error("simt: the copy engine needs rows on 16-byte boundaries");
  if (map.rows > 256) throw Error("simt: the copy engine brings at most 256 rows at once");
  if (to % 1024 != 0) throw Error("simt: a strip must start at a multiple of 1024 bytes");
}

}  // namespace

void init_barrier(int64_t barrier) {
  Shared<uint64_t>{barrier}[0] = 0;
  landed.clear();
}

void expect_bytes(int64_t barrier, int bytes) {
  State& s = state_of(barrier);
  if (s.missing != 0) throw Error("simt: bytes are expected while a phase is under way");
  s.missing = bytes;
}

void copy_strip(int64_t to, const TensorMap& map, int64_t barrier, int column, int row, int head, int batch) {
  check_copy(to, map);
  const int bytes = map.rows * map.width * 2;
  begin_bulk_write(to, bytes);
  const auto* const data = static_cast<const uint16_t*>(map.data);
  for (int r = 0; r < map.rows; ++r)
    for (int c = 0; c < map.width; ++c) {
      const bool inside = row + r < map.sizes[1] && column + c < map.sizes[3];
      const uint16_t value =
          inside
              ? data[batch * map.strides[0] + (row + r) * map.strides[1] + head * map.strides[2] + column + c]
              : 0;
      std::memcpy(shared_bytes(swizzled(to, r, c, map.width), 2), &value, 2);
    }
  landed.push_back({barrier, to, bytes});
  State& s = state_of(barrier);
  s.missing -= bytes;
  if (s.missing < 0) throw Error("simt: more bytes came than the barrier expects");
  if (s.missing == 0) s.phase ^= 1;
}

void wait_for_phase(int64_t barrier, int phase) {
  (void)static_cast<uint64_t>(
      Shared<uint64_t>(barrier)[0]);  // it must have been initialised before a barrier of the block
  wait_until([&] { return state_of(barrier).phase != phase; });
  for (const Landed& l : landed)
    if (l.barrier == barrier) end_bulk_write(l.offset, l.bytes);
  std::vector<Landed> others;
  for (const Landed& l : landed)
    if (l.barrier != barrier) others.push_back(l);
  landed = others;
}

void warpgroup_mma_any(float* acc, const uint32_t (&a)[4], int64_t at, int columns, int width,
                       bool transposed, float (*convert)(uint16_t)) {
  struct In {
    uint32_t a[4];
    int64_t at;
    int columns, width;
    bool transposed;
    float (*convert)(uint16_t);
  } in{{a[0], a[1], a[2], a[3]}, at, columns, width, transposed, convert};
  warp_collective(&in, acc, [](const void* const* in, void* const* out) {
    const auto lane_in = [&](int lane) { return static_cast<const In*>(in[lane]); };
    const In& call = *lane_in(0);
    float A[16][16];
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int h = 0; h < 2; ++h)
        for (int q = 0; q < 4; ++q)
          A[g + 8 * (q % 2)][2 * t + h + 8 * (q / 2)] =
              call.convert(static_cast<uint16_t>(lane_in(lane)->a[q] >> (16 * h)));
    }
    for (int n = 0; n < call.columns; ++n) {
      float b[16];
      for (int k = 0; k < 16; ++k) {
        // `at` need not be the start of a row, which must not matter: swizzling looks at addresses.
        const int64_t from =
            call.transposed ? swizzled(call.at, n, k, call.width) : swizzled(call.at, k, n, call.width);
        uint16_t bits;
        std::memcpy(&bits, shared_bytes(from, 2), 2);
        note_read(from, 2);
        b[k] = call.convert(bits);
      }
      for (int row = 0; row < 16; ++row) {
        float& d = static_cast<float*>(out[row % 8 * 4 + n % 8 / 2])[n / 8 * 4 + row / 8 * 2 + n % 2];
        for (int k = 0; k < 16; ++k) d += A[row][k] * b[k];
      }
    }
  });
}

}  // namespace va::simt::emulator
