// SPDX-License-Identifier: Apache-2.0
#include "kernels/layer_norm/layer_norm.h"

#include <algorithm>

#include "core/dispatch.h"
#include "kernels/common/vectors.cuh"

namespace va {
namespace {

using namespace simt;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
template <class T>
constexpr int kScratchBytes = kWarps * static_cast<int>(sizeof(compute_t<T>));

// A [rows, dim] argument inside a kernel; data may be null.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  VA_DEVICE T* row(int64_t i) const { return data + i * stride; }
};
template <class T>
Rows<T> rows_of(const TensorView& v) {
  return {v.defined() ? v.ptr<T>() : nullptr, v.defined() ? v.strides[0] : 0};
}

// One row in the registers of kGroup threads, kPacks 16-byte chunks each; chunk c of member m starts at
// column (c * kGroup + m) * kSize. Columns past dim read as zero.
template <class T, int kGroup, int kPacks>
struct Row {
  using C = compute_t<T>;
  static constexpr int kSize = Pack<T>::kSize;
  C v[kPacks][kSize];

  static VA_DEVICE int column(int chunk, int member) { return (chunk * kGroup + member) * kSize; }

  static VA_DEVICE void load_chunk(C (&out)[kSize], const T* p, int column, int dim) {
    if (column < dim) {
      const Pack<T> pack = load16(p + column);
#pragma unroll
      for (int i = 0; i < kSize; ++i) out[i] = to_float(pack.v[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kSize; ++i) out[i] = 0;
    }
  }

  VA_DEVICE void load(const T* p, int dim, int member) {
#pragma unroll
    for (int c = 0; c < kPacks; ++c) load_chunk(v[c], p, column(c, member), dim);
  }

  VA_DEVICE void store(T* p, int dim, int member) const {
#pragma unroll
    for (int c = 0; c < kPacks; ++c) {
      const int at = column(c, member);
      if (at >= dim) continue;
      Pack<T> pack;
#pragma unroll
      for (int i = 0; i < kSize; ++i) pack.v[i] = from_float<T>(v[c][i]);
      store16(p + at, pack);
    }
  }

  // Calls f(value, column) on every element held here.
  template <class F>
  VA_DEVICE void each(int member, F&& f) {
#pragma unroll
    for (int c = 0; c < kPacks; ++c)
#pragma unroll
      for (int i = 0; i < kSize; ++i) f(v[c][i], column(c, member) + i);
  }
};

template <class T>
struct ForwardParams {
  using C = compute_t<T>;
  Rows<const T> x, residual;
  const T* weight;
  const T* bias;
  Rows<T> y, sum;
  C* mean;
  C* rstd;
  int64_t rows;
  int dim;
  C inverse_dim, eps;  // a division in the kernel would be a call, and spill
};

// One warp per row, the row in registers.
template <class T, int kPacks>
VA_KERNEL(kThreads, 2)
forward_kernel(ForwardParams<T> p) {
  using C = compute_t<T>;
  using R = Row<T, kWarp, kPacks>;
  const int lane = lane_index();
  const int64_t step = static_cast<int64_t>(grid_x()) * kWarps;
  for (int64_t row = static_cast<int64_t>(block_x()) * kWarps + warp_index(); row < p.rows; row += step) {
    R x;
    x.load(p.x.row(row), p.dim, lane);
    if (p.residual.data) {
      R r;
      r.load(p.residual.row(row), p.dim, lane);
#pragma unroll
      for (int c = 0; c < kPacks; ++c)
#pragma unroll
        for (int i = 0; i < R::kSize; ++i) x.v[c][i] = to_float(from_float<T>(x.v[c][i] + r.v[c][i]));
      x.store(p.sum.row(row), p.dim, lane);
    }
    C total = 0;
    x.each(lane, [&](C v, int) { total += v; });
    const C mean = warp_sum(total) * p.inverse_dim;
    C squares = 0;
    x.each(lane, [&](C v, int column) { squares += column < p.dim ? (v - mean) * (v - mean) : C(0); });
    const C rstd = rsqrt_of(warp_sum(squares) * p.inverse_dim + p.eps);
#pragma unroll
    for (int c = 0; c < kPacks; ++c) {
      C w[R::kSize], b[R::kSize];
      if (p.weight) R::load_chunk(w, p.weight, R::column(c, lane), p.dim);
      if (p.bias) R::load_chunk(b, p.bias, R::column(c, lane), p.dim);
#pragma unroll
      for (int i = 0; i < R::kSize; ++i) {
        C y = (x.v[c][i] - mean) * rstd;
        if (p.weight) y *= w[i];
        if (p.bias) y += b[i];
        x.v[c][i] = y;
      }
    }
    x.store(p.y.row(row), p.dim, lane);
    if (lane == 0) {
      if (p.mean) p.mean[row] = mean;
      if (p.rstd) p.rstd[row] = rstd;
    }
  }
}

// Any dim and alignment: one block per row, which is read again for each step.
template <class T>
VA_KERNEL(kThreads)
forward_loop_kernel(ForwardParams<T> p) {
  using C = compute_t<T>;
  Shared<C> scratch = shared_memory<C>(0);
  const int me = thread_index();
  for (int64_t row = block_x(); row < p.rows; row += grid_x()) {
    const T* x = p.x.row(row);
    const auto s = [&](int i) {
      const C v = to_float(x[i]);
      return p.residual.data ? C(to_float(from_float<T>(v + C(to_float(p.residual.row(row)[i]))))) : v;
    };
    C total = 0;
    for (int i = me; i < p.dim; i += kThreads) total += s(i);
    const C mean = block_sum<kThreads>(total, scratch) * p.inverse_dim;
    C squares = 0;
    for (int i = me; i < p.dim; i += kThreads) squares += (s(i) - mean) * (s(i) - mean);
    const C rstd = rsqrt_of(block_sum<kThreads>(squares, scratch) * p.inverse_dim + p.eps);
    for (int i = me; i < p.dim; i += kThreads) {
      const C v = s(i);
      C y = (v - mean) * rstd;
      if (p.weight) y *= to_float(p.weight[i]);
      if (p.bias) y += to_float(p.bias[i]);
      p.y.row(row)[i] = from_float<T>(y);
      if (p.residual.data) p.sum.row(row)[i] = from_float<T>(v);
    }
    if (me == 0) {
      if (p.mean) p.mean[row] = mean;
      if (p.rstd) p.rstd[row] = rstd;
    }
  }
}

template <class T>
struct BackwardParams {
  using C = compute_t<T>;
  Rows<const T> dy, s, dsum;
  const T* weight;
  const C* mean;
  const C* rstd;
  Rows<T> dx;
  C* workspace;  // [parts, 2, dim], or null when no parameter gradient is wanted
  int64_t rows, rows_per_part;
  int dim;
  C inverse_dim;
};

// One block per part of the rows; the block's threads share each row, so that every thread keeps the
// parameter gradients of its own columns in registers.
template <class T, int kPacks>
VA_KERNEL(kThreads)
backward_kernel(BackwardParams<T> p) {
  using C = compute_t<T>;
  using R = Row<T, kThreads, kPacks>;
  Shared<C> scratch = shared_memory<C>(0);
  const int me = thread_index();
  C dweight[kPacks][R::kSize] = {}, dbias[kPacks][R::kSize] = {};
  const int64_t begin = block_x() * p.rows_per_part;
  const int64_t end = begin + p.rows_per_part < p.rows ? begin + p.rows_per_part : p.rows;
  for (int64_t row = begin; row < end; ++row) {
    const C mean = p.mean[row], rstd = p.rstd[row];
    R g, xhat;
    g.load(p.dy.row(row), p.dim, me);
    xhat.load(p.s.row(row), p.dim, me);
    C sum_g = 0, sum_gx = 0;
#pragma unroll
    for (int c = 0; c < kPacks; ++c) {
      C w[R::kSize];
      if (p.weight) R::load_chunk(w, p.weight, R::column(c, me), p.dim);
#pragma unroll
      for (int i = 0; i < R::kSize; ++i) {
        const C dy = g.v[c][i];
        xhat.v[c][i] = (xhat.v[c][i] - mean) * rstd;
        dweight[c][i] += dy * xhat.v[c][i];
        dbias[c][i] += dy;
        if (p.weight) g.v[c][i] = dy * w[i];
        sum_g += g.v[c][i];
        sum_gx += g.v[c][i] * xhat.v[c][i];  // columns past dim have dy = 0
      }
    }
    const C mean_g = block_sum<kThreads>(sum_g, scratch) * p.inverse_dim;
    const C mean_gx = block_sum<kThreads>(sum_gx, scratch) * p.inverse_dim;
#pragma unroll
    for (int c = 0; c < kPacks; ++c) {
      C extra[R::kSize];
      if (p.dsum.data) R::load_chunk(extra, p.dsum.row(row), R::column(c, me), p.dim);
#pragma unroll
      for (int i = 0; i < R::kSize; ++i) {
        C dx = rstd * (g.v[c][i] - mean_g - xhat.v[c][i] * mean_gx);
        if (p.dsum.data) dx += extra[i];
        g.v[c][i] = dx;
      }
    }
    g.store(p.dx.row(row), p.dim, me);
  }
  if (p.workspace) {
    C* const part = p.workspace + static_cast<int64_t>(block_x()) * 2 * p.dim;
#pragma unroll
    for (int c = 0; c < kPacks; ++c)
#pragma unroll
      for (int i = 0; i < R::kSize; ++i) {
        const int at = R::column(c, me) + i;
        if (at < p.dim) {
          part[at] = dweight[c][i];
          part[p.dim + at] = dbias[c][i];
        }
      }
  }
}

// Any dim and alignment; the parameter gradients of a part grow in the workspace itself.
template <class T>
VA_KERNEL(kThreads)
backward_loop_kernel(BackwardParams<T> p) {
  using C = compute_t<T>;
  Shared<C> scratch = shared_memory<C>(0);
  const int me = thread_index();
  C* const part = p.workspace ? p.workspace + static_cast<int64_t>(block_x()) * 2 * p.dim : nullptr;
  for (int i = me; part && i < 2 * p.dim; i += kThreads) part[i] = 0;
  sync_block();
  const int64_t begin = block_x() * p.rows_per_part;
  const int64_t end = begin + p.rows_per_part < p.rows ? begin + p.rows_per_part : p.rows;
  for (int64_t row = begin; row < end; ++row) {
    const C mean = p.mean[row], rstd = p.rstd[row];
    const auto dy = [&](int i) { return C(to_float(p.dy.row(row)[i])); };
    const auto g = [&](int i) { return p.weight ? dy(i) * C(to_float(p.weight[i])) : dy(i); };
    const auto xhat = [&](int i) { return (C(to_float(p.s.row(row)[i])) - mean) * rstd; };
    C sum_g = 0, sum_gx = 0;
    for (int i = me; i < p.dim; i += kThreads) {
      sum_g += g(i);
      sum_gx += g(i) * xhat(i);
      if (part) {
        part[i] += dy(i) * xhat(i);
        part[p.dim + i] += dy(i);
      }
    }
    const C mean_g = block_sum<kThreads>(sum_g, scratch) * p.inverse_dim;
    const C mean_gx = block_sum<kThreads>(sum_gx, scratch) * p.inverse_dim;
    for (int i = me; i < p.dim; i += kThreads) {
      C dx = rstd * (g(i) - mean_g - xhat(i) * mean_gx);
      if (p.dsum.data) dx += to_float(p.dsum.row(row)[i]);
      p.dx.row(row)[i] = from_float<T>(dx);
    }
  }
}

// Adds the parts in order: out[column] = sum of workspace[part][which][column].
template <class C>
VA_KERNEL(kThreads)
reduce_parts_kernel(const C* workspace, C* dweight, C* dbias, int parts, int dim) {
  const int column = block_x() * kThreads + thread_index();
  if (column < dim) {
    C w = 0, b = 0;
    for (int i = 0; i < parts; ++i) {
      w += workspace[static_cast<int64_t>(i) * 2 * dim + column];
      b += workspace[(static_cast<int64_t>(i) * 2 + 1) * dim + column];
    }
    if (dweight) dweight[column] = w;
    if (dbias) dbias[column] = b;
  }
}

// The longest row that is kept in registers; more would spill.
template <class T>
constexpr int kMaxRegisterDim = sizeof(compute_t<T>) == 8 ? 512 : 2048;

// f(packs): the smallest compiled number of chunks with which kGroup threads cover dim;
// f(0) where the row does not fit or is not aligned for 16-byte accesses.
template <class T, int kGroup, class F>
void dispatch_packs(int64_t dim, bool aligned, F&& f) {
  constexpr int kMax = kMaxRegisterDim<T> / (kGroup * Pack<T>::kSize);
  const int64_t packs = (dim + kGroup * Pack<T>::kSize - 1) / (kGroup * Pack<T>::kSize);
  if (!aligned || dim % Pack<T>::kSize != 0 || packs > kMax) return f(std::integral_constant<int, 0>{});
  const auto try_packs = [&](auto n) {
    if constexpr (n() <= kMax) {
      if (packs <= n() && (n() == 1 || packs > n() / 2)) f(n);
    }
  };
  try_packs(std::integral_constant<int, 1>{});
  try_packs(std::integral_constant<int, 2>{});
  try_packs(std::integral_constant<int, 4>{});
  try_packs(std::integral_constant<int, 8>{});
  try_packs(std::integral_constant<int, 16>{});
}

}  // namespace

int64_t cuda::layer_norm_parts(int64_t rows) {
  return std::clamp<int64_t>(rows / 16, 1, 4 * static_cast<int64_t>(multiprocessors()));
}

void cuda::layer_norm_forward(const LayerNormForward& a, Stream stream) {
  const int64_t rows = a.x.sizes[0], dim = a.x.sizes[1];
  const bool aligned = aligned16(a.x) && aligned16(a.residual) && aligned16(a.weight) && aligned16(a.bias) &&
                       aligned16(a.y) && aligned16(a.sum);
  dispatch_float(a.x.dtype, "layer_norm: x", [&](auto t) {
    using T = typename decltype(t)::type;
    using C = compute_t<T>;
    const ForwardParams<T> p{rows_of<const T>(a.x),
                             rows_of<const T>(a.residual),
                             a.weight.ptr<const T>(),
                             a.bias.ptr<const T>(),
                             rows_of<T>(a.y),
                             rows_of<T>(a.sum),
                             a.mean.ptr<C>(),
                             a.rstd.ptr<C>(),
                             rows,
                             static_cast<int>(dim),
                             C(1) / static_cast<C>(dim),
                             static_cast<C>(a.eps)};
    const int64_t most_blocks = 16 * multiprocessors();
    dispatch_packs<T, kWarp>(dim, aligned, [&](auto packs) {
      if constexpr (packs() > 0) {
        const auto blocks = static_cast<unsigned>(std::min((rows + kWarps - 1) / kWarps, most_blocks));
        launch("layer_norm", forward_kernel<T, packs()>, {blocks}, kThreads, 0, stream, p);
      } else {
        const auto blocks = static_cast<unsigned>(std::min(rows, most_blocks));
        launch("layer_norm", forward_loop_kernel<T>, {blocks}, kThreads, kScratchBytes<T>, stream, p);
      }
    });
  });
}

void cuda::layer_norm_backward(const LayerNormBackward& a, Stream stream) {
  const int64_t rows = a.dy.sizes[0], dim = a.dy.sizes[1];
  const bool aligned =
      aligned16(a.dy) && aligned16(a.s) && aligned16(a.weight) && aligned16(a.dsum) && aligned16(a.dx);
  const int64_t parts = a.workspace.defined() ? a.workspace.sizes[0] : layer_norm_parts(rows);
  dispatch_float(a.dy.dtype, "layer_norm: dy", [&](auto t) {
    using T = typename decltype(t)::type;
    using C = compute_t<T>;
    const BackwardParams<T> p{rows_of<const T>(a.dy),     rows_of<const T>(a.s), rows_of<const T>(a.dsum),
                              a.weight.ptr<const T>(),    a.mean.ptr<const C>(), a.rstd.ptr<const C>(),
                              rows_of<T>(a.dx),           a.workspace.ptr<C>(),  rows,
                              (rows + parts - 1) / parts, static_cast<int>(dim), C(1) / static_cast<C>(dim)};
    const auto blocks = static_cast<unsigned>(parts);
    dispatch_packs<T, kThreads>(dim, aligned, [&](auto packs) {
      if constexpr (packs() > 0) {
        launch("layer_norm", backward_kernel<T, packs()>, {blocks}, kThreads, kScratchBytes<T>, stream, p);
      } else {
        launch("layer_norm", backward_loop_kernel<T>, {blocks}, kThreads, kScratchBytes<T>, stream, p);
      }
    });
    if (a.workspace.defined()) {
      launch("layer_norm", reduce_parts_kernel<C>, {static_cast<unsigned>((dim + kThreads - 1) / kThreads)},
             kThreads, 0, stream, a.workspace.ptr<const C>(), a.dweight.ptr<C>(), a.dbias.ptr<C>(),
             static_cast<int>(parts), static_cast<int>(dim));
    }
  });
}

}  // namespace va
