// SPDX-License-Identifier: Apache-2.0
// Some rows of cosines at a time go into the workspace by a matrix product; passes over them while they are
// in cache take the sums of rows and of columns, or turn them into gradients for two more products. Every sum
// runs in one thread in a fixed order.
#include "kernels/contrastive_loss/contrastive_loss.h"

#include "core/dispatch.h"
#include "core/parallel.h"
#include "kernels/common/gemm.h"
#include "kernels/common/math.h"

namespace va {
namespace VA_ISA {
namespace {

constexpr int64_t kGrainElements = 16384;  // below this a second thread costs more than it brings

// v with `fill` in the lanes from n on.
template <class V>
VA_INLINE V pad(V v, int64_t n, Element<V> fill) {
  for (int64_t i = n; i < kLanes<Element<V>>; ++i) v[i] = fill;
  return v;
}

// Rows [row, row + count) of the cosines of all images and texts, and what turns them into logits.
template <class C>
struct Block {
  C* data;
  int64_t stride, row, count, texts;
  C scale, bias;

  C* at(int64_t r) const { return data + r * stride; }
  VA_INLINE Vec<C> logit(Vec<C> cosine) const { return fmadd(cosine, splat(scale), splat(bias)); }
  C logit_of(C cosine) const { return logit(splat(cosine))[0]; }
};

// body(block) for the rows of all images, in order.
template <class C, class Args, class F>
void for_blocks(const Args& a, F&& body) {
  const int64_t images = a.image.sizes[0], texts = a.text.sizes[0], width = a.image.sizes[1];
  const Operand<C> image{a.image.template ptr<C>(), a.image.strides[0], 1};
  const Operand<C> text{a.text.template ptr<C>(), a.text.strides[0], 1};
  Block<C> block{a.workspace.template ptr<C>(),
                 contrastive_row_stride(texts),
                 0,
                 0,
                 texts,
                 *a.scale.template ptr<C>(),
                 a.bias.defined() ? *a.bias.template ptr<C>() : C(0)};
  for (block.row = 0; block.row < images; block.row += block.count) {
    block.count = smaller(kContrastiveRows, images - block.row);
    const Gemm<C> g{block.count, texts, width, {image.at(block.row, 0), image.stride, 1}, text};
    gemm<C>(g, [&](const Tile<C>& t) {
      for (int64_t r = 0; r < t.rows; ++r)
        for_lanes<C>(t.cols, [&](int64_t c, auto n) {
          store_n(block.at(t.row + r) + t.col + c, load_n(t.data + r * kTileCols<C> + c, n), n);
        });
    });
    body(block);
  }
}

template <class C>
void for_rows(const Block<C>& block, RangeFn fn) {
  parallel_for(block.count, kGrainElements / (block.texts + 1) + 1, fn);
}

template <class C>
void softmax_row(const ContrastiveForward& a, const Block<C>& b, int64_t r) {
  const C* const cosines = b.at(r);
  Vec<C> top = splat(-static_cast<C>(INFINITY)), sum{};
  for_lanes<C>(b.texts, [&](int64_t j, auto n) {
    top = vmax(top, pad(b.logit(load_n(cosines + j, n)), n, -static_cast<C>(INFINITY)));
  });
  const C max = reduce_max(top);
  for_lanes<C>(b.texts,
               [&](int64_t j, auto n) { sum += pad(vexp(b.logit(load_n(cosines + j, n)) - max), n, 0); });
  const int64_t i = b.row + r;
  const C own = b.logit_of(cosines[a.first + i]);
  a.own.ptr<C>()[i] = own;
  a.rows.ptr<C>()[i] = (max - own) + std::log(reduce_add(sum));
}

// Takes the rows of the block into the running maximum and sum of n columns from j on.
template <class C, class N>
VA_INLINE void softmax_columns(const ContrastiveForward& a, const Block<C>& b, int64_t j, N n) {
  C* const tops = a.top.ptr<C>() + j;
  C* const sums = a.columns.ptr<C>() + j;
  const Vec<C> before = load_n(tops, n);
  Vec<C> top = before;
  for (int64_t r = 0; r < b.count; ++r) top = vmax(top, b.logit(load_n(b.at(r) + j, n)));
  Vec<C> sum = load_n(sums, n) * vexp(before - top);
  for (int64_t r = 0; r < b.count; ++r) sum += vexp(b.logit(load_n(b.at(r) + j, n)) - top);
  store_n(tops, top, n);
  store_n(sums, sum, n);
}

template <class C>
void softmax_forward(const ContrastiveForward& a) {
  const int64_t texts = a.text.sizes[0], vectors = ceil_div(texts, kLanes<C>);
  C* const tops = a.top.ptr<C>();
  C* const columns = a.columns.ptr<C>();
  for (int64_t j = 0; j < texts; ++j) tops[j] = -static_cast<C>(INFINITY), columns[j] = 0;
  for_blocks<C>(a, [&](const Block<C>& b) {
    for_rows(b, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) softmax_row(a, b, r);
    });
    const int64_t grain = kGrainElements / (b.count * kLanes<C>)+1;
    parallel_for(vectors, grain, [&](int64_t begin, int64_t end) {
      const int64_t from = begin * kLanes<C>, to = smaller(texts, end * kLanes<C>);
      for_lanes<C>(to - from, [&](int64_t j, auto n) { softmax_columns(a, b, from + j, n); });
    });
  });
  for_lanes<C>(texts, [&](int64_t j, auto n) { store_n(columns + j, vlog(load_n(columns + j, n)), n); });
}

// log(1 + e) to full relative accuracy for e in [0, 1].
template <class V>
VA_INLINE V log_1_plus(V e) {
  const V u = e + Element<V>(1);
  const V d = u - Element<V>(1);
  return d == Element<V>(0) ? e : vlog(u) * (e / d);
}
// log(1 + exp(x))
template <class V>
VA_INLINE V softplus(V x) {
  return vmax(x, V{}) + log_1_plus(vexp(-vabs(x)));
}

template <class C>
void sigmoid_forward(const ContrastiveForward& a) {
  for_blocks<C>(a, [&](const Block<C>& b) {
    for_rows(b, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        // The own text's logit counts with the other sign, so the sum runs around it.
        const int64_t i = b.row + r, own = a.first < 0 ? b.texts : a.first + i;
        C total = own < b.texts ? softplus(splat(-b.logit_of(b.at(r)[own])))[0] : 0;
        for (const int64_t from : {int64_t(0), own + 1}) {
          const C* const cosines = b.at(r) + from;
          Vec<C> sum{};
          for_lanes<C>((from == 0 ? own : b.texts) - from, [&](int64_t j, auto n) {
            sum += pad(softplus(b.logit(load_n(cosines + j, n))), n, 0);
          });
          total += reduce_add(sum);
        }
        a.rows.ptr<C>()[i] = total;
      }
    });
  });
}

// Turns a row of cosines into scale * g, and notes the row's part of dscale and dbias.
template <class C>
void softmax_row_backward(const ContrastiveBackward& a, const Block<C>& b, int64_t r, C* sums) {
  C* const row = b.at(r);
  const int64_t i = b.row + r, place = a.first + i;
  const C g = a.drows.ptr<C>()[i], loss = a.rows.ptr<C>()[i], own = a.own.ptr<C>()[i];
  const C* const tops = a.top.ptr<C>();
  const C* const columns = a.columns.ptr<C>();
  const C* const dcolumns = a.dcolumns.ptr<C>();
  const C cosine = row[place], extra = a.down.ptr<C>()[i] - g;
  Vec<C> sum{};
  for_lanes<C>(b.texts, [&](int64_t j, auto n) {
    const Vec<C> c = load_n(row + j, n), l = b.logit(c);
    const Vec<C> d = g * vexp((l - own) - loss) +
                     load_n(dcolumns + j, n) * vexp((l - load_n(tops + j, n)) - load_n(columns + j, n));
    sum += pad(d * c, n, 0);
    store_n(row + j, b.scale * d, n);
  });
  row[place] += b.scale * extra;
  sums[0] = reduce_add(sum) + extra * cosine;
  sums[1] = 0;
}

template <class C>
void sigmoid_row_backward(const ContrastiveBackward& a, const Block<C>& b, int64_t r, C* sums) {
  C* const row = b.at(r);
  const int64_t i = b.row + r, own = a.first < 0 ? b.texts : a.first + i;
  const C g = a.drows.ptr<C>()[i];
  C total = 0, total_cosine = 0;
  if (own < b.texts) {
    total = -g * sigmoid_parts(b.logit(splat(row[own]))).complement[0];
    total_cosine = total * row[own];
    row[own] = b.scale * total;
  }
  for (const int64_t from : {int64_t(0), own + 1}) {
    C* const part = row + from;
    Vec<C> sum{}, sum_cosine{};
    for_lanes<C>((from == 0 ? own : b.texts) - from, [&](int64_t j, auto n) {
      const Vec<C> c = load_n(part + j, n);
      const Vec<C> d = pad(g * vsigmoid(b.logit(c)), n, 0);
      sum += d;
      sum_cosine += d * c;
      store_n(part + j, b.scale * d, n);
    });
    total += reduce_add(sum);
    total_cosine += reduce_add(sum_cosine);
  }
  sums[0] = total_cosine;
  sums[1] = total;
}

template <class C>
void backward(const ContrastiveBackward& a) {
  const int64_t images = a.image.sizes[0], texts = a.text.sizes[0], width = a.image.sizes[1];
  C* const dimage = a.dimage.ptr<C>();
  C* const dtext = a.dtext.ptr<C>();
  C* const sums = a.workspace.ptr<C>() + a.workspace.sizes[0] - 2 * images;  // dscale and dbias of each image
  if (images == 0) std::memset(dtext, 0, static_cast<size_t>(texts * width) * sizeof(C));
  for_blocks<C>(a, [&](const Block<C>& b) {
    for_rows(b, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        if (a.bias.defined())
          sigmoid_row_backward(a, b, r, sums + 2 * (b.row + r));
        else
          softmax_row_backward(a, b, r, sums + 2 * (b.row + r));
      }
    });
    const auto add_tile = [&](C* out, bool add, const Tile<C>& t) {
      for (int64_t r = 0; r < t.rows; ++r) {
        C* const to = out + (t.row + r) * width + t.col;
        for_lanes<C>(t.cols, [&](int64_t c, auto n) {
          const Vec<C> v = load_n(t.data + r * kTileCols<C> + c, n);
          store_n(to + c, add ? load_n(to + c, n) + v : v, n);
        });
      }
    };
    const Gemm<C> images_of_texts{
        b.count, width, texts, {b.data, b.stride, 1}, {a.text.ptr<C>(), 1, a.text.strides[0]}};
    gemm<C>(images_of_texts, [&](const Tile<C>& t) { add_tile(dimage + b.row * width, false, t); });
    const Gemm<C> texts_of_images{texts,
                                  width,
                                  b.count,
                                  {b.data, 1, b.stride},
                                  {a.image.ptr<C>() + b.row * a.image.strides[0], 1, a.image.strides[0]}};
    gemm<C>(texts_of_images, [&](const Tile<C>& t) { add_tile(dtext, b.row > 0, t); });
  });
  double dscale = 0, dbias = 0;
  for (int64_t i = 0; i < images; ++i) dscale += sums[2 * i], dbias += sums[2 * i + 1];
  *a.dscale.ptr<C>() = static_cast<C>(dscale);
  if (a.dbias.defined()) *a.dbias.ptr<C>() = static_cast<C>(dbias);
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
}  // namespace VA_ISA

namespace cpu {

template <>
void contrastive_loss_forward<kIsa>(const ContrastiveForward& a) {
  VA_ISA::dispatch_type(a.image.dtype, [&](auto c) {
    if (a.bias.defined())
      VA_ISA::sigmoid_forward<decltype(c)>(a);
    else
      VA_ISA::softmax_forward<decltype(c)>(a);
  });
}

template <>
void contrastive_loss_backward<kIsa>(const ContrastiveBackward& a) {
  VA_ISA::dispatch_type(a.image.dtype, [&](auto c) { VA_ISA::backward<decltype(c)>(a); });
}

}  // namespace cpu
}  // namespace va
