// SPDX-License-Identifier: Apache-2.0
// The Pair of attention_mma.cuh for every GPU from sm_80 on: cp.async copies and mma.sync products.
#pragma once
#include "kernels/attention/attention_mma.cuh"

namespace va::attention_sm80 {

using namespace attention_mma;

// A tile of kD columns in shared memory. Rows are padded by 16 bytes, so that the 8 rows of a matrix that
// load_matrices reads fall into different banks.
template <class T, int kD>
struct Tile {
  static constexpr int kStride = kD + 8;
  static constexpr int bytes(int rows) { return rows * kStride * static_cast<int>(sizeof(T)); }
  Shared<T> base;

  // Starts copying kRows rows; rows past `rows` and columns past `dim` become zero.
  template <int kRows>
  VA_DEVICE void load(const Heads<const T>& from, int b, int h, int first, int rows, int dim) {
    constexpr int kPacks = kD / 8;
#pragma unroll(kD <= 96 ? 2 : 1)  // more would hold addresses in registers that the products need
    for (int i = thread_index(); i < kRows * kPacks; i += kThreads) {
      const int r = i / kPacks, c = i % kPacks * 8;
      const bool valid = first + r < rows && c < dim;
      copy16_async(base + (r * kStride + c), valid ? from.row(b, h, first + r) + c : from.data, valid);
    }
  }

  // B operands of two neighbouring 8-column tiles whose columns are this tile's rows (X^T):
  // rows n, n + 8; depth = columns k .. k + 15.
  VA_DEVICE void rows_as_columns(uint32_t (&b)[4], int n, int k) const {
    const int lane = lane_index();
    load_matrices<false>(b, base + ((n + lane / 16 * 8 + lane % 8) * kStride + k + lane / 8 % 2 * 8));
  }
  // B operands of two neighbouring 8-column tiles of this tile itself (X): depth = rows k .. k + 15;
  // columns n, n + 8.
  VA_DEVICE void columns(uint32_t (&b)[4], int k, int n) const {
    const int lane = lane_index();
    load_matrices<true>(b, base + ((k + lane / 8 % 2 * 8 + lane % 8) * kStride + n + lane / 16 * 8));
  }
};

// acc[n8] += A (16 x kD) times X^T, X = rows row .. row + 8 n8 - 1 of a tile.
template <int n8, class T, int kD>
VA_DEVICE void multiply_transposed(float (&acc)[n8][4], const RowsOperand<T, kD>& a, const Tile<T, kD>& x,
                                   int row) {
#pragma unroll
  for (int k = 0; k < kD / 16; ++k)
#pragma unroll
    for (int n = 0; n < n8 / 2; ++n) {
      uint32_t b[4];
      x.rows_as_columns(b, row + n * 16, k * 16);
      mma_16x8x16<T>(acc[2 * n], a.a[k], b[0], b[1]);
      mma_16x8x16<T>(acc[2 * n + 1], a.a[k], b[2], b[3]);
    }
}

// acc[kD / 8] += P (16 x kN) times X, X = rows row .. row + kN - 1 of a tile.
template <int kN, class T, int kD>
VA_DEVICE void multiply(float (&acc)[kD / 8][4], const RowsOperand<T, kN>& p, const Tile<T, kD>& x, int row) {
#pragma unroll
  for (int k = 0; k < kN / 16; ++k)
#pragma unroll
    for (int n = 0; n < kD / 16; ++n) {
      uint32_t b[4];
      x.columns(b, row + k * 16, n * 16);
      mma_16x8x16<T>(acc[2 * n], p.a[k], b[0], b[1]);
      mma_16x8x16<T>(acc[2 * n + 1], p.a[k], b[2], b[3]);
    }
}

// With two stages the next chunk is on its way while the current one is worked on.
template <class T_, int kD_, int kRows_, int kStages>
struct Pair {
  using T = T_;
  static constexpr int kD = kD_, kRows = kRows_;
  static constexpr bool kResident = kStages == 1;
  static constexpr bool kIdleWarpsSkip = true;
  using TileT = Tile<T, kD>;
  static constexpr int kTileBytes = TileT::bytes(kRows), kBytes = 2 * kStages * kTileBytes;

  struct Source {
    Heads<const T> x, y;
    int rows, dim;
  };
  static Source source(const TensorView& x, const TensorView& y) {
    return {heads_of<const T>(x), heads_of<const T>(y), static_cast<int>(x.sizes[1]),
            static_cast<int>(x.sizes[3])};
  }

  const Source& from;
  TileT x{shared_memory<T>(0)}, y{shared_memory<T>(kTileBytes)};

  VA_DEVICE explicit Pair(const Source& s) : from(s) {}

  // Called by the whole block for the chunks of (b, h) in rising order; `begin`: this is the first of them;
  // `more`: the next call will be for chunk + 1.
  VA_DEVICE void get(int b, int h, int chunk, bool begin, bool more) {
    if (kStages == 1 || begin) {
      sync_block();  // everybody is done with what lies there
      start(b, h, chunk);
    }
    wait_copies<0>();
    sync_block();
    x = tile(chunk, 0), y = tile(chunk, 1);
    if (kStages > 1 && more) start(b, h, chunk + 1);
  }

  template <class... Acc>
  static VA_DEVICE void begin(Acc&...) {}
  template <class... Acc>
  static VA_DEVICE void finish(Acc&...) {}

 private:
  static VA_DEVICE TileT tile(int chunk, int which) {
    return {shared_memory<T>((chunk % kStages * 2 + which) * kTileBytes)};
  }
  VA_DEVICE void start(int b, int h, int chunk) {
    tile(chunk, 0).template load<kRows>(from.x, b, h, chunk * kRows, from.rows, from.dim);
    tile(chunk, 1).template load<kRows>(from.y, b, h, chunk * kRows, from.rows, from.dim);
    commit_copies();
  }
};

}  // namespace va::attention_sm80
