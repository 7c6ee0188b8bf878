// SPDX-License-Identifier: Apache-2.0
// The tile table of the tensor-core kernels: pure functions of the product's size, so that it can be read,
// and tested, without a GPU. Chosen by counting waves of blocks; not yet tuned by measurement.
#pragma once
#include <cstdint>

#include "kernels/linear/linear_sm90.h"

namespace va::linear_gemm {

constexpr int64_t tiles_of(int64_t m, int64_t n, int64_t tile_m, int64_t tile_n) {
  return ((m + tile_m - 1) / tile_m) * ((n + tile_n - 1) / tile_n);
}

// The share of the GPU that is busy, in 1/1000, when `tiles` run `at_once` at a time.
constexpr int64_t occupancy(int64_t tiles, int64_t at_once) {
  return tiles == 0 ? 1000 : 1000 * tiles / ((tiles + at_once - 1) / at_once * at_once);
}

// m = 0 stands for any number of rows: the choice of deterministic mode. size: bytes of an operand's element.
constexpr Tile sm80_tile(int64_t m, int64_t n, int64_t size, int64_t processors) {
  if (m == 0 || tiles_of(m, n, 128, 128) * 2 > processors) return Tile::large;
  return size == 2 ? Tile::small : Tile::loose;
}

// 128 x 256 has the higher rate, ping-pong of 128 x 128 hides the epilogue and wastes less of a last wave.
constexpr Tile90 sm90_tile(int64_t m, int64_t n, int64_t k, int64_t processors) {
  if (n <= 128) return Tile90::medium;
  if (m == 0) return k >= 2048 ? Tile90::large : Tile90::medium;
  const int64_t large = occupancy(tiles_of(m, n, 128, 256), processors);
  const int64_t medium = occupancy(tiles_of(m, n, 128, 128), processors);
  const int64_t bonus = k >= 2048 ? 1150 : 1000;  // long sums hide the epilogue by themselves
  return large * bonus >= medium * 1050 ? Tile90::large : Tile90::medium;
}

// Below this share of busy multiprocessors the 64 x 64 tiles of the 2.x kernels finish first.
constexpr bool sm90_too_few(int64_t m, int64_t n, int64_t processors) {
  return m != 0 && tiles_of(m, n, 128, 128) * 2 <= processors;
}

static_assert(sm80_tile(197, 768, 2, 108) == Tile::small);
static_assert(sm80_tile(197 * 64, 768, 2, 108) == Tile::large);
static_assert(sm90_too_few(197, 768, 132) && !sm90_too_few(197 * 8, 3072, 132));

}  // namespace va::linear_gemm
