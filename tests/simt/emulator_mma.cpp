// SPDX-License-Identifier: Apache-2.0
// The emulator's tensor cores.
#include <cstring>

#include "simt/emulator.h"

namespace va::simt::emulator {
namespace {
constexpr int kWarp = 32;
}

void read_matrices_at(uint32_t (&r)[4], int64_t row_offset, bool transpose) {
  check_aligned16(row_offset);
  uint16_t row[8];
  std::memcpy(row, shared_bytes(row_offset, 16), 16);
  note_read(row_offset, 16);
  struct In {
    const uint16_t* row;
    bool transpose;
  } in{row, transpose};
  warp_collective(&in, &r, [](const void* const* in, void* const* out) {
    for (int lane = 0; lane < kWarp; ++lane) {
      auto* const r = static_cast<uint32_t*>(out[lane]);
      for (int m = 0; m < 4; ++m) {
        const auto at = [&](int i, int j) -> uint32_t {
          return static_cast<const In*>(in[m * 8 + i])->row[j];
        };
        const int i = lane / 4, j = 2 * (lane % 4);
        const bool t = static_cast<const In*>(in[lane])->transpose;
        r[m] = t ? at(j, i) | at(j + 1, i) << 16 : at(i, j) | at(i, j + 1) << 16;
      }
    }
  });
}

void mma_16x8x16_any(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     float (*convert)(uint16_t)) {
  struct In {
    uint32_t a[4], b[2];
    float (*convert)(uint16_t);
  } in{{a[0], a[1], a[2], a[3]}, {b0, b1}, convert};
  warp_collective(&in, &d, [](const void* const* in, void* const* out) {
    const auto lane_in = [&](int lane) { return static_cast<const In*>(in[lane]); };
    const auto half_of = [&](int lane, uint32_t word, int which) {
      return lane_in(lane)->convert(static_cast<uint16_t>(word >> (16 * which)));
    };
    float A[16][16], B[16][8];
    for (int lane = 0; lane < kWarp; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int h = 0; h < 2; ++h) {
        for (int q = 0; q < 4; ++q)
          A[g + 8 * (q % 2)][2 * t + h + 8 * (q / 2)] = half_of(lane, lane_in(lane)->a[q], h);
        for (int q = 0; q < 2; ++q) B[2 * t + h + 8 * q][g] = half_of(lane, lane_in(lane)->b[q], h);
      }
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      const int g = lane / 4, t = lane % 4;
      auto* const d = static_cast<float*>(out[lane]);
      for (int q = 0; q < 4; ++q) {
        float sum = d[q];
        for (int k = 0; k < 16; ++k) sum += A[g + 8 * (q / 2)][k] * B[k][2 * t + q % 2];
        d[q] = sum;
      }
    }
  });
}

void mma_16x8x8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct In {
    uint32_t a[4], b[2];
  } in{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  warp_collective(&in, &d, [](const void* const* in, void* const* out) {
    const auto value = [](uint32_t bits) {
      float x;
      bits &= 0xffffe000u;  // 10 bits of the fraction
      std::memcpy(&x, &bits, 4);
      return x;
    };
    float A[16][8], B[8][8];
    for (int lane = 0; lane < kWarp; ++lane) {
      const auto* const from = static_cast<const In*>(in[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int q = 0; q < 4; ++q) A[g + 8 * (q % 2)][t + 4 * (q / 2)] = value(from->a[q]);
      for (int q = 0; q < 2; ++q) B[t + 4 * q][g] = value(from->b[q]);
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      const int g = lane / 4, t = lane % 4;
      auto* const d = static_cast<float*>(out[lane]);
      for (int q = 0; q < 4; ++q)
        for (int k = 0; k < 8; ++k) d[q] += A[g + 8 * (q / 2)][k] * B[k][2 * t + q % 2];
    }
  });
}

}  // namespace va::simt::emulator
