// SPDX-License-Identifier: Apache-2.0
// Matrix products without tensor cores: a block of 16 x 16 threads sums a tile of 64 x 64, each thread 4 x 4.
// Both operands are staged depth-major in shared memory, kDepth of the sum at a time.
#pragma once
#include "kernels/common/simt.cuh"

namespace va::simt::product {

constexpr int kSide = 16;            // threads along each side of a block's tile
constexpr int kRun = 4;              // outputs of a thread along each side
constexpr int kTile = kSide * kRun;  // outputs of a block along each side
constexpr int kDepth = 16;           // of the sum at a time
constexpr int kRow = kTile + 4;      // keeps the transposed stores out of each other's banks
constexpr int kThreads = kSide * kSide;
template <class C>
constexpr int kOperandBytes = kDepth * kRow * static_cast<int>(sizeof(C));

VA_DEVICE int first_row() { return thread_index() / kSide * kRun; }
VA_DEVICE int first_column() { return thread_index() % kSide * kRun; }

// sums += of this thread's rows of a and columns of b; both staged, with barriers around. Each block of the
// sum is added up on its own first: long sums lose less to rounding.
template <class C>
VA_DEVICE void multiply(Shared<C> a, Shared<C> b, C (&sums)[kRun][kRun]) {
  const int i0 = first_row(), j0 = first_column();
  C part[kRun][kRun] = {};
#pragma unroll 4
  for (int k = 0; k < kDepth; ++k) {
    C left[kRun], right[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) left[i] = a[k * kRow + i0 + i];
#pragma unroll
    for (int j = 0; j < kRun; ++j) right[j] = b[k * kRow + j0 + j];
#pragma unroll
    for (int i = 0; i < kRun; ++i)
#pragma unroll
      for (int j = 0; j < kRun; ++j) part[i][j] += left[i] * right[j];
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i)
#pragma unroll
    for (int j = 0; j < kRun; ++j) sums[i][j] += part[i][j];
}

}  // namespace va::simt::product
