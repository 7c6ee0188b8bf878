// SPDX-License-Identifier: Apache-2.0
// The Pair of attention_mma.cuh for sm_90a: the copy engine brings the rows, and products are WGMMA of the
// block's one warpgroup, with the left operand in registers. What overlaps copies with arithmetic are the
// other blocks of the multiprocessor and, with two stages, the next chunk.
#pragma once
#include "kernels/attention/attention_mma.cuh"
#include "kernels/common/hopper.cuh"

namespace va::attention_sm90 {

using namespace attention_mma;
static_assert(kThreads == kGroup);

template <class F, size_t... i>
VA_DEVICE void for_constants(std::index_sequence<i...>, F&& f) {
  (f(std::integral_constant<int, static_cast<int>(i)>{}), ...);
}

// kRows x kD in strips of 64 columns and one of what is left over.
template <class T, int kD, int kRows>
struct StripTile {
  static_assert(kD % 64 % 48 == 0 || kD % 64 == 16 || kD % 64 == 32);
  static constexpr int kStrips = (kD + 63) / 64;
  static constexpr int kBytes = kRows * kD * static_cast<int>(sizeof(T));
  static constexpr int width(int strip) { return strip < kD / 64 ? 64 : kD % 64; }

  Shared<T> base;
  // Of strip i.
  template <int i>
  VA_DEVICE Shared<T> at(int row, int column) const {
    return base + (i * kRows * 64 + row * width(i) + column);
  }
};

// acc[n8] += A (64 x kD) times X^T, X = rows row .. row + 8 n8 - 1 of a tile.
template <int n8, class T, int kD, int kRows>
VA_DEVICE void multiply_transposed(float (&acc)[n8][4], const RowsOperand<T, kD>& a,
                                   const StripTile<T, kD, kRows>& x, int row) {
  for_constants(std::make_index_sequence<kD / 16>(), [&](auto k) {
    constexpr int kStrip = k() / 4, kWidth = x.width(kStrip), kColumn = k() % 4 * 16;
    if constexpr (n8 <= 32) {
      warpgroup_mma<true, kWidth>(acc, a.a[k()], x.template at<kStrip>(row, kColumn));
    } else {  // more than one instruction takes
      using Part = float (&)[n8 / 2][4];
      warpgroup_mma<true, kWidth>(reinterpret_cast<Part>(acc[0]), a.a[k()],
                                  x.template at<kStrip>(row, kColumn));
      warpgroup_mma<true, kWidth>(reinterpret_cast<Part>(acc[n8 / 2]), a.a[k()],
                                  x.template at<kStrip>(row + n8 * 4, kColumn));
    }
  });
}

// acc[kD / 8] += P (64 x kN) times X, X = rows row .. row + kN - 1 of a tile.
template <int kN, class T, int kD, int kRows>
VA_DEVICE void multiply(float (&acc)[kD / 8][4], const RowsOperand<T, kN>& p,
                        const StripTile<T, kD, kRows>& x, int row) {
#pragma unroll
  for (int k = 0; k < kN / 16; ++k) {
    for_constants(std::make_index_sequence<x.kStrips>(), [&](auto i) {
      constexpr int kWidth = x.width(i());
      warpgroup_mma<false, kWidth>(reinterpret_cast<float (&)[kWidth / 8][4]>(acc[i() * 8]), p.a[k],
                                   x.template at<i()>(row + k * 16, 0));
    });
  }
}

template <class T_, int kD_, int kRows_, int kStages>
struct Pair {
  using T = T_;
  static constexpr int kD = kD_, kRows = kRows_;
  static constexpr bool kResident = kStages == 1;
  static constexpr bool kIdleWarpsSkip = false;  // a product needs all four
  using TileT = StripTile<T, kD, kRows>;
  static constexpr int kTileBytes = (TileT::kBytes + 1023) / 1024 * 1024;
  static constexpr int kBytes = 2 * kStages * kTileBytes + kStages * static_cast<int>(sizeof(uint64_t));
  static constexpr int kCopies = (kRows + 255) / 256, kCopyRows = kRows / kCopies;  // one brings 256 at most
  static_assert(kCopyRows * kCopies == kRows && kCopyRows % 8 == 0);

  struct Source {
    TensorMap x[TileT::kStrips], y[TileT::kStrips];
  };
  static Source source(const TensorView& x, const TensorView& y) {
    Source s;
    for_constants(std::make_index_sequence<TileT::kStrips>(), [&](auto i) {
      s.x[i()] = tensor_map<T, TileT::width(i())>("attention", x, kCopyRows);
      s.y[i()] = tensor_map<T, TileT::width(i())>("attention", y, kCopyRows);
    });
    return s;
  }

  const Source& from;
  TileT x{shared_memory<T>(0)}, y{shared_memory<T>(kTileBytes)};
  int phases = 0;  // bit i: the phase that stage i waits for next

  VA_DEVICE explicit Pair(const Source& s) : from(s) {
    if (thread_index() == 0) {
      for (int i = 0; i < kStages; ++i) init_barrier(barrier(i));
    }
  }

  // As in attention_sm80.cuh.
  VA_DEVICE void get(int b, int h, int chunk, bool begin, bool more) {
    if (kStages == 1 || begin) {
      sync_block();  // everybody is done with what lies there
      start(b, h, chunk);
    }
    const int stage = chunk % kStages;
    wait_for_phase(barrier(stage), phases >> stage & 1);
    phases ^= 1 << stage;
    x = tile(stage, 0), y = tile(stage, 1);
    sync_block();  // everybody is done with the chunk before
    if (kStages > 1 && more) start(b, h, chunk + 1);
  }

  template <class... Acc>
  static VA_DEVICE void begin(Acc&... acc) {
    begin_products(acc...);
  }
  template <class... Acc>
  static VA_DEVICE void finish(Acc&... acc) {
    finish_products(acc...);
  }

 private:
  static VA_DEVICE TileT tile(int stage, int which) {
    return {shared_memory<T>((stage * 2 + which) * kTileBytes)};
  }
  static VA_DEVICE CopyBarrier barrier(int stage) {
    return shared_memory<uint64_t>(2 * kStages * kTileBytes) + stage;
  }
  VA_DEVICE void start(int b, int h, int chunk) {
    if (thread_index() != 0) return;
    const int stage = chunk % kStages;
    expect_bytes(barrier(stage), 2 * TileT::kBytes);
    const auto copy = [&](TileT to, const TensorMap(&maps)[TileT::kStrips]) {
      for_constants(std::make_index_sequence<TileT::kStrips>(), [&](auto i) {
        for (int row = 0; row < kRows; row += kCopyRows)
          copy_strip(to.template at<i()>(row, 0), maps[i()], barrier(stage), i() * 64, chunk * kRows + row, h,
                     b);
      });
    };
    copy(tile(stage, 0), from.x);
    copy(tile(stage, 1), from.y);
  }
};

}  // namespace va::attention_sm90
