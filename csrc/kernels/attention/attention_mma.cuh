// SPDX-License-Identifier: Apache-2.0
// Pieces of the tensor-core attention kernels of the sm_80 class: a warp works on 16 rows, in the register
// layout of mma m16n8k16 (see simt.cuh): with g = lane / 4, t = lane % 4 a lane holds rows g and g + 8 and,
// of every 8 columns, columns 2t and 2t + 1.
#pragma once
#include "kernels/attention/attention.h"
#include "kernels/common/simt.cuh"

namespace va::attention_mma {

using namespace simt;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kWarpRows = 16;
constexpr float kLog2e = 1.4426950408889634f;

// One [B, N, H, D] argument; D is contiguous.
template <class T>
struct Heads {
  T* data;
  int64_t batch, token, head;  // strides in elements
  VA_DEVICE T* row(int b, int h, int n) const { return data + b * batch + h * head + n * token; }
};
template <class T>
Heads<T> heads_of(const TensorView& v) {
  return {v.ptr<T>(), v.strides[0], v.strides[1], v.strides[2]};
}

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
#pragma unroll 2  // more would hold addresses in registers that the products need
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

// A operand: 16 rows x kD columns held by a warp, straight from global memory.
template <class T, int kD>
struct RowsOperand {
  uint32_t a[kD / 16][4];

  VA_DEVICE void load(const Heads<const T>& from, int b, int h, int first, int rows, int dim) {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = first + g + 8 * half;
      const T* p = r < rows ? from.row(b, h, r) : nullptr;
#pragma unroll
      for (int k = 0; k < kD / 16; ++k)
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int c = k * 16 + side * 8 + 2 * t;
          uint32_t word = 0;
          if (p && c < dim) std::memcpy(&word, p + c, 4);
          a[k][side * 2 + half] = word;
        }
    }
  }
};

// acc[kN / 8] += A (16 x kD) times X^T, X = rows first .. first + kN - 1 of a tile.
template <int kN, class T, int kD>
VA_DEVICE void multiply_transposed(float (&acc)[kN / 8][4], const RowsOperand<T, kD>& a,
                                   const Tile<T, kD>& x) {
#pragma unroll
  for (int k = 0; k < kD / 16; ++k)
#pragma unroll
    for (int n = 0; n < kN / 16; ++n) {
      uint32_t b[4];
      x.rows_as_columns(b, n * 16, k * 16);
      mma_16x8x16<T>(acc[2 * n], a.a[k], b[0], b[1]);
      mma_16x8x16<T>(acc[2 * n + 1], a.a[k], b[2], b[3]);
    }
}

// acc[kD / 8] += P (16 x kN, in accumulator layout, rounded to T) times X, X = kN rows of a tile.
template <int kN, class T, int kD>
VA_DEVICE void multiply(float (&acc)[kD / 8][4], const float (&p)[kN / 8][4], const Tile<T, kD>& x) {
#pragma unroll
  for (int k = 0; k < kN / 16; ++k) {
    const uint32_t a[4] = {pack2<T>(p[2 * k][0], p[2 * k][1]), pack2<T>(p[2 * k][2], p[2 * k][3]),
                           pack2<T>(p[2 * k + 1][0], p[2 * k + 1][1]),
                           pack2<T>(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
    for (int n = 0; n < kD / 16; ++n) {
      uint32_t b[4];
      x.columns(b, k * 16, n * 16);
      mma_16x8x16<T>(acc[2 * n], a, b[0], b[1]);
      mma_16x8x16<T>(acc[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// Stores 16 x kD accumulators, scaled per row half, into rows first .. of a [B, N, H, D] output.
template <class T, int kD>
VA_DEVICE void store_rows(const float (&acc)[kD / 8][4], const float (&factor)[2], const Heads<T>& to, int b,
                          int h, int first, int rows, int dim) {
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = first + g + 8 * half;
    if (r >= rows) continue;
    T* p = to.row(b, h, r);
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
      const int c = n * 8 + 2 * t;
      if (c >= dim) continue;
      const uint32_t word = pack2<T>(acc[n][2 * half] * factor[half], acc[n][2 * half + 1] * factor[half]);
      std::memcpy(p + c, &word, 4);
    }
  }
}

// Query i sees the keys j < limit(i) that are not hidden.
struct Mask {
  const bool* padding;  // [B, M], true hides the key; may be null
  int64_t padding_batch, padding_key;
  int queries, keys;
  bool causal;
  VA_DEVICE int limit(int i) const {
    if (i >= queries) return 0;
    const int last = i + keys - queries + 1;
    return causal && last < keys ? last : keys;
  }
  VA_DEVICE bool hides(int b, int j) const {
    return padding && j < keys && padding[b * padding_batch + j * padding_key];
  }
  VA_DEVICE bool sees(int b, int i, int j) const { return j < limit(i) && !hides(b, j); }
};
inline Mask mask_of(const TensorView& padding, const TensorView& q, const TensorView& k, bool causal) {
  const int queries = static_cast<int>(q.sizes[1]), keys = static_cast<int>(k.sizes[1]);
  if (!padding.defined()) return {nullptr, 0, 0, queries, keys, causal};
  return {padding.ptr<const bool>(), padding.strides[0], padding.strides[1], queries, keys, causal};
}

// Reductions over the 4 lanes that share a row.
VA_DEVICE float quad_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}
VA_DEVICE float quad_max(float x) {
  x = fmaxf(x, shuffle_xor(x, 1));
  return fmaxf(x, shuffle_xor(x, 2));
}

}  // namespace va::attention_mma
