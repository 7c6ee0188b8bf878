// SPDX-License-Identifier: Apache-2.0
// Matrix products that the tensor-core kernels do not take: f64, odd sizes, any strides. Sums run over k in
// order, so an output's bits do not depend on the batch.
#include <algorithm>

#include "core/dispatch.h"
#include "kernels/common/product.cuh"
#include "kernels/linear/linear_gemm.cuh"

namespace va::linear_gemm {
namespace {

using namespace simt;

using namespace product;

// Stages rows [first, first + kTile) x columns [k0, k0 + kDepth) of an operand, k-major, zeros outside.
template <class T>
VA_DEVICE void stage(Shared<compute_t<T>> to, const Operand& x, int64_t first, int64_t rows, int64_t k0,
                     int64_t k1) {
  const bool along_k = x.col == 1;  // neighbouring threads read neighbouring elements
  for (int i = thread_index(); i < kTile * kDepth; i += kThreads) {
    const int row = along_k ? i / kDepth : i % kTile, k = along_k ? i % kDepth : i / kTile;
    const bool inside = first + row < rows && k0 + k < k1;
    const T* const p = static_cast<const T*>(x.data);
    to[k * kRow + row] =
        inside ? compute_t<T>(to_float(p[(first + row) * x.row + (k0 + k) * x.col])) : compute_t<T>(0);
  }
}

template <class T>
VA_KERNEL(kThreads)
product_kernel(Gemm g) {
  using C = compute_t<T>;
  Shared<C> a = shared_memory<C>(0), b = shared_memory<C>(kOperandBytes<C>);
  const int64_t m0 = static_cast<int64_t>(block_x()) * kTile, n0 = static_cast<int64_t>(block_y()) * kTile;
  const int64_t k_first = block_z() * g.chunk, k_last = k_first + g.chunk < g.k ? k_first + g.chunk : g.k;
  C sums[kRun][kRun] = {};
  for (int64_t k0 = k_first; k0 < k_last; k0 += kDepth) {
    sync_block();
    stage<T>(a, g.a, m0, g.m, k0, k_last);
    stage<T>(b, g.b, n0, g.n, k0, k_last);
    sync_block();
    multiply(a, b, sums);
  }
  const int64_t n = n0 + first_column();
  const int count = g.n - n < kRun ? static_cast<int>(g.n - n) : kRun;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const int64_t m = m0 + first_row() + i;
    if (m >= g.m || count <= 0) continue;
    if (g.partial)
      store_run<C>(g.partial, (block_z() * g.m + m) * g.n + n, count, false, sums[i]);
    else
      finish_run<T>(g.epilogue, m, n, count, sums[i]);
  }
}

// Adds the parts of a sum over k in order, then finishes.
template <class T>
VA_KERNEL(kThreads)
join_kernel(Gemm g) {
  using C = compute_t<T>;
  constexpr int kV = Pack<T>::kSize;
  const int64_t runs = (g.n + kV - 1) / kV;
  const int64_t item = static_cast<int64_t>(block_x()) * kThreads + thread_index();
  if (item < g.m * runs) {
    const int64_t m = item / runs, n = item % runs * kV;
    const int count = g.n - n < kV ? static_cast<int>(g.n - n) : kV;
    C total[kV] = {};
    for (int part = 0; part < g.splits; ++part) {
      C v[kV];
      load_run<C>(g.partial, (part * g.m + m) * g.n + n, count, g.epilogue.vectors, v);
#pragma unroll
      for (int i = 0; i < kV; ++i) total[i] += v[i];
    }
    finish_run<T>(g.epilogue, m, n, count, total);
  }
}

unsigned blocks(int64_t work, int64_t size) { return static_cast<unsigned>((work + size - 1) / size); }

}  // namespace

void run_generic(const Gemm& gemm, Stream stream) {
  constexpr int64_t kMostColumns = 65535LL * kTile;
  if (gemm.n > kMostColumns)
    fail("linear: at most " + std::to_string(kMostColumns) + " output features on a GPU, got " +
         std::to_string(gemm.n));
  Gemm g = gemm;
  if (g.splits == 1) g.chunk = std::max<int64_t>(g.k, 1);
  dispatch_float(g.dtype, "linear: x", [&](auto t) {
    using T = typename decltype(t)::type;
    launch("linear", product_kernel<T>,
           {blocks(g.m, kTile), blocks(g.n, kTile), static_cast<unsigned>(g.splits)}, kThreads,
           2 * kOperandBytes<compute_t<T>>, stream, g);
  });
}

void join_splits(const Gemm& g, Stream stream) {
  dispatch_float(g.dtype, "linear: x", [&](auto t) {
    using T = typename decltype(t)::type;
    const int64_t runs = (g.n + Pack<T>::kSize - 1) / Pack<T>::kSize;
    launch("linear", join_kernel<T>, {blocks(g.m * runs, kThreads)}, kThreads, 0, stream, g);
  });
}

}  // namespace va::linear_gemm
