// SPDX-License-Identifier: Apache-2.0
// The GPU side of linear: describes the products, and the elementwise half of backward.
#include "kernels/linear/linear.h"

#include <algorithm>

#include "core/dispatch.h"
#include "kernels/common/vectors.cuh"
#include "kernels/linear/linear_gemm.cuh"

namespace va {
namespace {

using namespace linear_gemm;
using namespace simt;

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int64_t kAlign = 16;

#ifdef VA_SIMT
constexpr bool kHasTensorCores = false;
#else
constexpr bool kHasTensorCores = true;
#endif

// dz = dy * scale * act'(z); sums over rows of dz (dbias) and of dy * act(z) (dscale).
struct Backward {
  const void *dy, *z, *scale;
  void *dz, *sums;  // sums [parts, 2, cols]
  int64_t dy_row, z_row, dz_row, rows, cols, rows_per_part;
  Activation activation;
  bool wide, wide_scale, vectors, needs_dscale;
};

// A warp reads whole rows of 32 x kV columns; its block's warps take turns at the rows of one part.
template <class T>
VA_KERNEL(kThreads)
dz_kernel(const VA_PARAMETER Backward p) {
  using C = compute_t<T>;
  constexpr int kV = Pack<T>::kSize, kCols = kWarp * kV;
  Shared<C> shared = shared_memory<C>(0);  // [kWarps, 2, kCols]
  const int64_t col = static_cast<int64_t>(block_x()) * kCols + lane_index() * kV;
  const int count = p.cols - col < kV ? static_cast<int>(p.cols - col) : kV;
  const int64_t begin = block_y() * p.rows_per_part;
  const int64_t end = begin + p.rows_per_part < p.rows ? begin + p.rows_per_part : p.rows;
  C dbias[kV] = {}, dscale[kV] = {}, scale[kV];
  if (p.scale && count > 0) load_run_of<T>(p.wide_scale, p.scale, col, count, p.vectors, scale);
#pragma unroll 1  // f64 spills with more
  for (int64_t row = begin + warp_index(); row < end && count > 0; row += kWarps) {
    C d[kV], z[kV];
    load_run_of<T>(p.wide, p.dy, row * p.dy_row + col, count, p.vectors, d);
    if (p.z) load_run<T>(p.z, row * p.z_row + col, count, p.vectors, z);
    if (p.needs_dscale) {
      C y[kV];
#pragma unroll
      for (int i = 0; i < kV; ++i) y[i] = z[i];
      gpu::activate<sizeof(T) == 2>(p.activation, y);
#pragma unroll
      for (int i = 0; i < kV; ++i) dscale[i] += d[i] * y[i];
    }
    if (p.scale) {
#pragma unroll
      for (int i = 0; i < kV; ++i) d[i] *= scale[i];
    }
    gpu::times_derivative<sizeof(T) == 2>(p.activation, z, d);
#pragma unroll
    for (int i = 0; i < kV; ++i) dbias[i] += d[i];
    if (p.dz) store_run<T>(p.dz, row * p.dz_row + col, count, p.vectors, d);
  }
  if (p.sums) {
#pragma unroll
    for (int i = 0; i < kV; ++i) {
      shared[(warp_index() * 2) * kCols + lane_index() * kV + i] = dbias[i];
      shared[(warp_index() * 2 + 1) * kCols + lane_index() * kV + i] = dscale[i];
    }
    sync_block();
    for (int i = thread_index(); i < 2 * kCols; i += kThreads) {
      const int which = i / kCols, c = i % kCols;
      const int64_t column = static_cast<int64_t>(block_x()) * kCols + c;
      C total = 0;
      for (int w = 0; w < kWarps; ++w) total += shared[(w * 2 + which) * kCols + c];
      if (column < p.cols) static_cast<C*>(p.sums)[(block_y() * 2 + which) * p.cols + column] = total;
    }
  }
}

// out[col] = the parts' sums in a fixed order: each warp every eighth, then the warps.
template <class C>
VA_KERNEL(kThreads)
sums_kernel(const C* sums, C* dbias, C* dscale, int64_t parts, int64_t cols) {
  Shared<C> shared = shared_memory<C>(0);
  C* const out = block_y() == 0 ? dbias : dscale;
  const int64_t col = static_cast<int64_t>(block_x()) * kWarp + lane_index();
  C total = 0;
  for (int64_t part = warp_index(); part < parts && col < cols; part += kWarps)
    total += sums[(part * 2 + block_y()) * cols + col];
  shared[thread_index()] = total;
  sync_block();
  if (warp_index() == 0 && col < cols && out) {
    total = 0;
    for (int w = 0; w < kWarps; ++w) total += shared[w * kWarp + lane_index()];
    out[col] = total;
  }
}

unsigned blocks(int64_t work, int64_t size) { return static_cast<unsigned>((work + size - 1) / size); }

// The parts that the rows are cut into: enough blocks for the GPU, at least 16 rows for each warp.
int64_t sum_parts(int64_t rows, int64_t cols) {
  const int64_t columns = std::max<int64_t>(1, (cols + 255) / 256);
  return std::clamp<int64_t>((4 * multiprocessors() + columns - 1) / columns, 1,
                             std::max<int64_t>(1, rows / (16 * kWarps)));
}

bool can_use_vectors(int64_t cols, DType dtype, std::initializer_list<const TensorView*> views) {
  return cols * size_of(dtype) % kAlign == 0 &&
         std::all_of(views.begin(), views.end(), [](const TensorView* v) { return aligned16(*v); });
}

// A matrix as rows of an operand. The stride of an axis of one element says nothing.
Operand operand(const TensorView& v, bool transposed) {
  int64_t row = v.strides[0], col = v.strides[1];
  if (v.sizes[0] == 1) row = std::max<int64_t>(v.sizes[1], 1) * std::max<int64_t>(col, 1);
  if (v.sizes[1] == 1 && v.sizes[0] > 1) col = row == 1 ? v.sizes[0] : 1;
  return transposed ? Operand{v.data, col, row} : Operand{v.data, row, col};
}

// Long sums with few outputs are cut: about two blocks of 128 x 128 for each multiprocessor.
void cut_k(Gemm& g) {
  constexpr int64_t kSide = 128, kLeast = 1024;
  const int64_t tiles = blocks(g.m, kSide) * static_cast<int64_t>(blocks(g.n, kSide));
  const int64_t wanted = std::min<int64_t>(2 * multiprocessors() / std::max<int64_t>(tiles, 1), 64);
  if (wanted < 2 || g.k < 2 * kLeast) return;
  g.chunk = std::max((g.k + wanted - 1) / wanted, kLeast);
  g.chunk = (g.chunk + 63) / 64 * 64;
  g.splits = static_cast<int>(blocks(g.k, g.chunk));
}

Gemm weight_gradient(DType dtype, int64_t rows, int64_t n, int64_t k) {
  Gemm g{dtype, n, k, rows, {}, {}, {}};
  cut_k(g);
  return g;
}

}  // namespace

void linear_gemm::run_product(Gemm g, void* scratch, int64_t bytes, Stream stream) {
  if (g.m == 0 || g.n == 0) return;
  if constexpr (kHasTensorCores) {
    if (run_tensor_cores(g, scratch, bytes, stream)) return;
  }
  g.partial = g.splits > 1 ? scratch : nullptr;
  run_generic(g, stream);
  if (g.splits > 1) join_splits(g, stream);
}

// Partial sums for the 2.x kernels, or stream-K's.
int64_t linear_gemm::scratch_of(const Gemm& g) {
  int64_t bytes = 0;
  if (g.splits > 1) bytes = g.splits * g.m * g.n * static_cast<int64_t>(g.dtype == DType::f64 ? 8 : 4);
  if constexpr (kHasTensorCores) bytes = std::max(bytes, tensor_core_scratch(g));
  return bytes;
}

void cuda::linear_force_tile([[maybe_unused]] const std::string& name) {
  if constexpr (kHasTensorCores) linear_gemm::force_tile(name);
}

int64_t cuda::linear_workspace(DType dtype, int64_t rows, int64_t n, int64_t k, bool sums, bool dweight) {
  const int64_t size = dtype == DType::f64 ? 8 : 4;
  int64_t numel = 0;
  if (sums) numel += (sum_parts(rows, n) * 2 * n * size + kAlign - 1) / kAlign * kAlign / size;
  if (dweight) numel += (scratch_of(weight_gradient(dtype, rows, n, k)) + size - 1) / size;
  return numel;
}

void cuda::linear_forward(const LinearForward& a, Stream stream) {
  check(a.weight.defined(), "linear: weights on a GPU are not packed");
  const int64_t m = a.y.sizes[0], n = a.y.sizes[1], k = a.x.sizes[1];
  Gemm g{a.x.dtype, m, n, k, operand(a.x, false), operand(a.weight, false), {}};
  g.tf32 = a.tf32, g.deterministic = a.deterministic;
  Epilogue& e = g.epilogue;
  e.bias = a.bias.data, e.scale = a.scale.data, e.residual = a.residual.data, e.y = a.y.data, e.z = a.z.data;
  e.residual_row = a.residual.strides[0], e.y_row = a.y.strides[0], e.z_row = a.z.strides[0];
  e.activation = a.activation;
  e.wide = a.y.dtype != a.x.dtype;
  e.wide_scale = a.scale.defined() && a.scale.dtype != a.x.dtype;
  e.vectors = can_use_vectors(n, a.x.dtype, {&a.bias, &a.scale, &a.residual, &a.y, &a.z});
  run_product(g, nullptr, 0, stream);
}

void cuda::linear_backward(const LinearBackward& a, Stream stream) {
  const int64_t m = a.dy.sizes[0], n = a.dy.sizes[1];
  const TensorView& dz = a.dz.defined() ? a.dz : a.dy;  // has the dtype of x
  const bool sums = a.dbias.defined() || a.dscale.defined();
  char* scratch = a.workspace.ptr<char>();
  int64_t bytes = a.workspace.numel() * (a.workspace.defined() ? size_of(a.workspace.dtype) : 0);
  if (n > 0 && (sums || (a.dz.defined() && m > 0))) {
    dispatch_float(dz.dtype, "linear: dz", [&](auto t) {
      using T = typename decltype(t)::type;
      using C = compute_t<T>;
      constexpr int kCols = kWarp * Pack<T>::kSize;
      const int64_t parts = sum_parts(m, n);
      Backward p{};
      p.dy = a.dy.data, p.z = a.z.data, p.scale = a.scale.data, p.dz = a.dz.data;
      p.sums = sums ? scratch : nullptr;
      p.dy_row = a.dy.strides[0], p.z_row = a.z.strides[0], p.dz_row = a.dz.strides[0];
      p.rows = m, p.cols = n, p.rows_per_part = (m + parts - 1) / parts;
      p.activation = a.activation, p.needs_dscale = a.dscale.defined();
      p.wide = a.dy.dtype != dz.dtype;
      p.wide_scale = a.scale.defined() && a.scale.dtype != dz.dtype;
      p.vectors = can_use_vectors(n, dz.dtype, {&a.dy, &a.z, &a.scale, &a.dz});
      launch("linear", dz_kernel<T>, {blocks(n, kCols), static_cast<unsigned>(parts)}, kThreads,
             sums ? kWarps * 2 * kCols * static_cast<int>(sizeof(C)) : 0, stream, p);
      if (!sums) return;
      launch("linear", sums_kernel<C>, {blocks(n, kWarp), 2}, kThreads,
             kThreads * static_cast<int>(sizeof(C)), stream, static_cast<const C*>(p.sums), a.dbias.ptr<C>(),
             a.dscale.ptr<C>(), parts, n);
    });
  }
  if (sums) {
    const int64_t used = sum_parts(m, n) * 2 * n * (dz.dtype == DType::f64 ? 8 : 4);
    scratch += (used + kAlign - 1) / kAlign * kAlign;
    bytes -= (used + kAlign - 1) / kAlign * kAlign;
  }
  if (a.dx.defined()) {
    Gemm g{dz.dtype, m, a.dx.sizes[1], n, operand(dz, false), operand(a.weight, true), {}};
    g.tf32 = a.tf32, g.deterministic = a.deterministic;
    Epilogue& e = g.epilogue;
    e.y = a.dx.data, e.y_row = a.dx.strides[0];
    e.input = a.input.data, e.input_row = a.input.strides[0];
    if (a.input.defined()) e.activation = a.input_activation;
    e.vectors = can_use_vectors(g.n, dz.dtype, {&a.dx, &a.input});
    run_product(g, nullptr, 0, stream);
  }
  if (a.dweight.defined()) {
    Gemm g = weight_gradient(dz.dtype, m, n, a.dweight.sizes[1]);
    g.a = operand(dz, true), g.b = operand(a.x, true);
    g.tf32 = a.tf32, g.deterministic = a.deterministic;
    g.epilogue.y = a.dweight.data, g.epilogue.y_row = a.dweight.strides[0];
    g.epilogue.vectors = can_use_vectors(g.n, dz.dtype, {&a.dweight});
    run_product(g, scratch, bytes, stream);
  }
}

}  // namespace va
