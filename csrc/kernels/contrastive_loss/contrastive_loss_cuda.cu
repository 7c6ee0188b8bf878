// SPDX-License-Identifier: Apache-2.0
// Some rows of cosines at a time go into the workspace by a matrix product of linear's; passes over them take
// the sums of rows and of columns, or turn them into gradients for two more products. Every sum runs in a
// fixed order.
#include "kernels/contrastive_loss/contrastive_loss.h"

#include <algorithm>
#include <cmath>

#include "core/dispatch.h"
#include "kernels/common/vectors.cuh"
#include "kernels/linear/linear_gemm.cuh"

namespace va {
namespace {

using namespace simt;

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

// Rows [row, row + count) of the cosines of all images and texts, and what turns them into logits.
template <class C>
struct Block {
  C* data;
  int64_t stride, row, count, images, texts, first;
  const C *scale, *bias;  // one value each; bias may be null

  VA_DEVICE C logit(C cosine) const { return cosine * *scale + (bias ? *bias : C(0)); }
};

// A block has a row.
template <class C>
VA_KERNEL(kThreads)
softmax_rows_kernel(Block<C> b, C* rows, C* owns) {
  const Shared<C> scratch = shared_memory<C>(0);
  const C* const cosines = b.data + block_x() * b.stride;
  C top = -static_cast<C>(INFINITY), sum = 0;
  for (int64_t j = thread_index(); j < b.texts; j += kThreads) {
    const C l = b.logit(cosines[j]);
    top = top > l ? top : l;
  }
  top = block_max<kThreads>(top, scratch);
  for (int64_t j = thread_index(); j < b.texts; j += kThreads) sum += exp_of(b.logit(cosines[j]) - top);
  sum = block_sum<kThreads>(sum, scratch);
  if (thread_index() == 0) {
    const int64_t i = b.row + block_x();
    const C own = b.logit(cosines[b.first + i]);
    owns[i] = own;
    rows[i] = (top - own) + log_of(sum);
  }
}

// Takes the rows into the running maximum and sum of each column: a lane has a column, the warps share the
// rows. The last call leaves the logarithms of the sums.
template <class C>
VA_KERNEL(kThreads)
softmax_columns_kernel(Block<C> b, C* tops, C* columns) {
  const Shared<C> scratch = shared_memory<C>(0);
  const int64_t j = static_cast<int64_t>(block_x()) * kWarp + lane_index();
  const bool inside = j < b.texts;
  const C before = inside && b.row > 0 ? tops[j] : -static_cast<C>(INFINITY);
  C top = before;
  for (int64_t r = warp_index(); r < b.count && inside; r += kWarps) {
    const C l = b.logit(b.data[r * b.stride + j]);
    top = top > l ? top : l;
  }
  scratch[thread_index()] = top;
  sync_block();
  for (int w = 0; w < kWarps; ++w) {
    const C other = scratch[w * kWarp + lane_index()];
    top = top > other ? top : other;
  }
  sync_block();
  C sum = 0;
  for (int64_t r = warp_index(); r < b.count && inside; r += kWarps)
    sum += exp_of(b.logit(b.data[r * b.stride + j]) - top);
  scratch[thread_index()] = sum;
  sync_block();
  if (warp_index() == 0 && inside) {
    sum = b.row > 0 ? columns[j] * exp_of(before - top) : C(0);
    for (int w = 0; w < kWarps; ++w) sum += scratch[w * kWarp + lane_index()];
    tops[j] = top;
    columns[j] = b.row + b.count == b.images ? log_of(sum) : sum;
  }
}

// log(1 + exp(x))
template <class C>
VA_DEVICE C softplus(C x) {
  return (x > 0 ? x : C(0)) + std::log1p(exp_of(x > 0 ? -x : x));
}
template <class C>
VA_DEVICE C sigmoid(C x) {
  return C(1) / (C(1) + exp_of(-x));
}

template <class C>
VA_KERNEL(kThreads)
sigmoid_rows_kernel(Block<C> b, C* rows) {
  const Shared<C> scratch = shared_memory<C>(0);
  const C* const cosines = b.data + block_x() * b.stride;
  const int64_t i = b.row + block_x(), own = b.first < 0 ? b.texts : b.first + i;
  C sum = 0;
  for (int64_t j = thread_index(); j < b.texts; j += kThreads) {
    const C l = b.logit(cosines[j]);
    sum += softplus(j == own ? -l : l);
  }
  sum = block_sum<kThreads>(sum, scratch);
  if (thread_index() == 0) rows[i] = sum;
}

// Null pointers where there is no softmax.
template <class C>
struct Gradients {
  const C *drows, *down, *dcolumns, *rows, *own, *top, *columns;
  C* sums;  // [images, 2]: each image's part of dscale and dbias
};

// Turns a row of cosines into scale * g.
template <class C>
VA_KERNEL(kThreads)
backward_rows_kernel(Block<C> b, Gradients<C> p) {
  const Shared<C> scratch = shared_memory<C>(0);
  C* const row = b.data + block_x() * b.stride;
  const int64_t i = b.row + block_x(), place = b.first < 0 ? b.texts : b.first + i;
  const C g = p.drows[i], scale = *b.scale;
  C sum = 0, sum_cosine = 0;
  for (int64_t j = thread_index(); j < b.texts; j += kThreads) {
    const C cosine = row[j], l = b.logit(cosine);
    C d;
    if (b.bias) {
      d = j == place ? -g * sigmoid(-l) : g * sigmoid(l);
    } else {
      d = g * exp_of((l - p.own[i]) - p.rows[i]) + p.dcolumns[j] * exp_of((l - p.top[j]) - p.columns[j]);
      if (j == place) d += p.down[i] - g;
    }
    sum += d;
    sum_cosine += d * cosine;
    row[j] = scale * d;
  }
  sum = block_sum<kThreads>(sum, scratch);
  sum_cosine = block_sum<kThreads>(sum_cosine, scratch);
  if (thread_index() == 0) {
    p.sums[2 * i] = sum_cosine;
    p.sums[2 * i + 1] = sum;
  }
}

template <class C>
VA_KERNEL(kThreads)
join_kernel(const C* sums, int64_t images, C* dscale, C* dbias) {
  const Shared<double> scratch = shared_memory<double>(0);
  double scale = 0, bias = 0;
  for (int64_t i = thread_index(); i < images; i += kThreads) scale += sums[2 * i], bias += sums[2 * i + 1];
  scale = block_sum<kThreads>(scale, scratch);
  bias = block_sum<kThreads>(bias, scratch);
  if (thread_index() == 0) {
    *dscale = static_cast<C>(scale);
    if (dbias) *dbias = static_cast<C>(bias);
  }
}

// product[m, n] = a b^T, added to y when `add`.
void product(DType dtype, int64_t m, int64_t n, int64_t k, linear_gemm::Operand a, linear_gemm::Operand b,
             void* y, int64_t y_row, bool add, Stream stream) {
  linear_gemm::Gemm g{dtype, m, n, k, a, b, {}};
  g.epilogue.y = y, g.epilogue.y_row = y_row;
  if (add) g.epilogue.residual = y, g.epilogue.residual_row = y_row;
  const auto bits = reinterpret_cast<uintptr_t>(y) | static_cast<uintptr_t>((n | y_row) * size_of(dtype));
  g.epilogue.vectors = bits % 16 == 0;
  linear_gemm::run_product(g, nullptr, 0, stream);
}

// body(block) for the rows of all images, in order; once, with no row, when there are none.
template <class C, class Args, class F>
void for_blocks(const Args& a, Stream stream, F&& body) {
  const int64_t width = a.image.sizes[1];
  Block<C> b{a.workspace.template ptr<C>(),
             contrastive_row_stride(a.text.sizes[0]),
             0,
             0,
             a.image.sizes[0],
             a.text.sizes[0],
             a.first,
             a.scale.template ptr<const C>(),
             a.bias.template ptr<const C>()};
  do {
    b.count = std::min(kContrastiveRows, b.images - b.row);
    product(a.image.dtype, b.count, b.texts, width,
            {a.image.template ptr<C>() + b.row * a.image.strides[0], a.image.strides[0], 1},
            {a.text.data, a.text.strides[0], 1}, b.data, b.stride, false, stream);
    body(b);
    b.row += b.count;
  } while (b.row < b.images);
}

// f(C{}): the dtype of everything.
template <class F>
void dispatch_type(DType dtype, F&& f) {
  if (dtype == DType::f64)
    f(double{});
  else
    f(float{});
}

}  // namespace

void cuda::contrastive_loss_forward(const ContrastiveForward& a, Stream stream) {
  dispatch_type(a.image.dtype, [&](auto zero) {
    using C = decltype(zero);
    constexpr int kBytes = sizeof(C);
    for_blocks<C>(a, stream, [&](const Block<C>& b) {
      const auto rows = static_cast<unsigned>(b.count);
      if (a.bias.defined())
        return launch("contrastive_loss", sigmoid_rows_kernel<C>, {rows}, kThreads, kWarps * kBytes, stream,
                      b, a.rows.ptr<C>());
      launch("contrastive_loss", softmax_rows_kernel<C>, {rows}, kThreads, kWarps * kBytes, stream, b,
             a.rows.ptr<C>(), a.own.ptr<C>());
      launch("contrastive_loss", softmax_columns_kernel<C>,
             {static_cast<unsigned>((b.texts + kWarp - 1) / kWarp)}, kThreads, kThreads * kBytes, stream, b,
             a.top.ptr<C>(), a.columns.ptr<C>());
    });
  });
}

void cuda::contrastive_loss_backward(const ContrastiveBackward& a, Stream stream) {
  dispatch_type(a.image.dtype, [&](auto zero) {
    using C = decltype(zero);
    constexpr int kBytes = sizeof(C);
    const int64_t images = a.image.sizes[0], width = a.image.sizes[1];
    C* const sums = a.workspace.ptr<C>() + a.workspace.sizes[0] - 2 * images;
    const Gradients<C> p{
        a.drows.ptr<const C>(), a.down.ptr<const C>(), a.dcolumns.ptr<const C>(), a.rows.ptr<const C>(),
        a.own.ptr<const C>(),   a.top.ptr<const C>(),  a.columns.ptr<const C>(),  sums};
    for_blocks<C>(a, stream, [&](const Block<C>& b) {
      launch("contrastive_loss", backward_rows_kernel<C>, {static_cast<unsigned>(b.count)}, kThreads,
             kWarps * kBytes, stream, b, p);
      product(a.image.dtype, b.count, width, b.texts, {b.data, b.stride, 1},
              {a.text.data, 1, a.text.strides[0]}, a.dimage.ptr<C>() + b.row * width, width, false, stream);
      product(a.image.dtype, b.texts, width, b.count, {b.data, 1, b.stride},
              {a.image.ptr<C>() + b.row * a.image.strides[0], 1, a.image.strides[0]}, a.dtext.data, width,
              b.row > 0, stream);
    });
    launch("contrastive_loss", join_kernel<C>, {1}, kThreads, kWarps * static_cast<int>(sizeof(double)),
           stream, static_cast<const C*>(sums), images, a.dscale.ptr<C>(), a.dbias.ptr<C>());
  });
}

}  // namespace va
