// SPDX-License-Identifier: Apache-2.0
// The choice of the tensor-core kernel: pure functions of the product's size, so that it can be read, and
// tested, without a GPU. The rule counts waves of blocks; `python -m bench.tune` adds what it has measured.
#pragma once
#include <cstdint>

#include "kernels/linear/linear_sm90.h"

namespace va::linear_gemm {

// The 2.x kernels and the 3.x ones of sm_90a, by tile.
enum class Choice { sm80_large, sm80_small, sm90_large, sm90_medium };

constexpr bool is_sm90(Choice c) { return c == Choice::sm90_large || c == Choice::sm90_medium; }

// A product on GPUs of this compute capability (major) and number of multiprocessors, and its best kernel.
struct Measured {
  int capability;
  int64_t processors;
  Major form;
  int64_t m, n, k;
  Choice best;
};

}  // namespace va::linear_gemm

#include "kernels/linear/linear_tiles_measured.h"

namespace va::linear_gemm {

constexpr int64_t tiles_of(int64_t m, int64_t n, int64_t tile_m, int64_t tile_n) {
  return ((m + tile_m - 1) / tile_m) * ((n + tile_n - 1) / tile_n);
}

// The share of the GPU that is busy, in 1/1000, when `tiles` run `at_once` at a time.
constexpr int64_t occupancy(int64_t tiles, int64_t at_once) {
  return tiles == 0 ? 1000 : 1000 * tiles / ((tiles + at_once - 1) / at_once * at_once);
}

// m = 0 stands for any number of rows: the choice of deterministic mode.
constexpr Choice sm80_choice(int64_t m, int64_t n, int64_t processors) {
  return m == 0 || tiles_of(m, n, 128, 128) * 2 > processors ? Choice::sm80_large : Choice::sm80_small;
}

// 128 x 256 has the higher rate, ping-pong of 128 x 128 hides the epilogue and wastes less of a last wave.
// Where few multiprocessors would be busy, the 64 x 64 tiles of the 2.x kernels finish first. Not so in a
// gradient by a weight, where the sum is shared between blocks (stream-K).
constexpr Choice sm90_choice(Major form, int64_t m, int64_t n, int64_t k, int64_t processors) {
  if (form != Major::mm && m != 0 && tiles_of(m, n, 128, 128) * 2 <= processors) return Choice::sm80_small;
  if (n <= 128) return Choice::sm90_medium;
  if (m == 0) return k >= 2048 ? Choice::sm90_large : Choice::sm90_medium;
  const int64_t large = occupancy(tiles_of(m, n, 128, 256), processors);
  const int64_t medium = occupancy(tiles_of(m, n, 128, 128), processors);
  const int64_t bonus = k >= 2048 ? 1150 : 1000;  // long sums hide the epilogue by themselves
  return large * bonus >= medium * 1050 ? Choice::sm90_large : Choice::sm90_medium;
}

// What is measured holds for up to twice as many rows and down to half as many.
template <int64_t kCount>
constexpr Choice choose(const Measured (&table)[kCount], int capability, bool hopper, Major form, int64_t m,
                        int64_t n, int64_t k, int64_t processors) {
  for (const Measured& e : table)
    if (m != 0 && e.capability == capability && e.processors == processors && e.form == form && e.n == n &&
        e.k == k && e.m <= 2 * m && m <= 2 * e.m && (hopper || !is_sm90(e.best)))
      return e.best;
  return hopper ? sm90_choice(form, m, n, k, processors) : sm80_choice(m, n, processors);
}

static_assert(sm80_choice(197, 768, 108) == Choice::sm80_small);
static_assert(sm80_choice(197 * 64, 768, 108) == Choice::sm80_large);
static_assert(sm90_choice(Major::kk, 197, 768, 768, 132) == Choice::sm80_small);
static_assert(is_sm90(sm90_choice(Major::kk, 197 * 8, 3072, 768, 132)));
namespace check {
constexpr Measured kTable[] = {{9, 132, Major::kk, 1000, 768, 768, Choice::sm90_large},
                               {8, 108, Major::mm, 768, 768, 9000, Choice::sm80_small}};
static_assert(choose(kTable, 9, true, Major::kk, 1999, 768, 768, 132) == Choice::sm90_large);
static_assert(choose(kTable, 9, true, Major::kk, 499, 768, 768, 132) == Choice::sm80_small);
static_assert(choose(kTable, 9, false, Major::kk, 1999, 768, 768, 132) == Choice::sm80_large);
static_assert(choose(kTable, 8, false, Major::mm, 768, 768, 9000, 108) == Choice::sm80_small);
}  // namespace check

}  // namespace va::linear_gemm
