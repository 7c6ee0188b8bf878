// SPDX-License-Identifier: Apache-2.0
// Attention as matrix products of linear's: for head dims past those of the fused kernels, such as the one
// head of 512 in an autoencoder, and for long sequences in f32. The scores of as many queries of a (batch,
// head) as the workspace holds are stored in f32; passes over them make probabilities and their gradients,
// in the dtype of the operands. How the queries are cut depends on the numbers of queries and keys alone,
// so an image's bits do not depend on its batch.
#include <algorithm>
#include <cmath>

#include "core/dispatch.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_mma.cuh"
#include "kernels/common/vectors.cuh"
#include "kernels/linear/linear_gemm.cuh"

namespace va {
namespace {

using namespace attention_mma;
using linear_gemm::Gemm;
using linear_gemm::Operand;

constexpr int kRowThreads = 256,
              kRun = 8;  // threads of a row of scores; scores that a thread takes at a time
#ifdef VA_SIMT           // several parts at small sizes
constexpr int64_t kMostBytes = 4096, kRowMultiple = 8;
#else
constexpr int64_t kMostBytes = int64_t{384} << 20, kRowMultiple = 128;
#endif

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// What lies where in the workspace. Rows of scores are padded to `stride` keys, so that the products read
// whole 16 bytes; the padding is zero probability.
struct Plan {
  int64_t rows;                        // queries at a time
  int64_t stride;                      // keys, rounded up
  int64_t scores, dscores, probs, ds;  // [rows, stride]: f32, f32, and as q (of f32 the same memory)
  int64_t padded;                      // [stride, dim] as q: V (in backward K) with rows of zeros behind
  int64_t sum_dk, sum_dv;              // [stride, dim] f32: sums over the parts
  int64_t shared_sums;                 // for a product whose sum is shared between blocks
  int64_t bytes;
};

Gemm product(DType dtype, int64_t m, int64_t n, int64_t k, Operand a, Operand b) {
  return Gemm{dtype, m, n, k, a, b, {}};
}

Plan plan_of(DType dtype, int64_t queries, int64_t keys, int64_t dim, bool backward) {
  Plan p{};
  const int64_t size = size_of(dtype), own = size == 4 ? 0 : size;
  p.stride = round_up(keys, kRun);
  const int64_t row_bytes = std::max<int64_t>(p.stride * (backward ? 2 : 1) * (4 + own), 1);
  p.rows = std::min(queries, std::max(kMostBytes / row_bytes / kRowMultiple, int64_t{1}) * kRowMultiple);
  const auto take = [&](int64_t n) {
    const int64_t at = p.bytes;
    p.bytes += round_up(n, 256);
    return at;
  };
  p.scores = take(p.rows * p.stride * 4);
  p.probs = own ? take(p.rows * p.stride * own) : p.scores;
  p.padded = take(p.stride == keys ? 0 : p.stride * dim * size);
  if (!backward) return p;
  p.dscores = take(p.rows * p.stride * 4);
  p.ds = own ? take(p.rows * p.stride * own) : p.dscores;
  p.sum_dk = take(p.stride * dim * 4);
  p.sum_dv = take(p.stride * dim * 4);
  p.shared_sums = p.bytes;
  p.bytes += linear_gemm::scratch_of(product(dtype, p.stride, dim, p.rows, {}, {}));
  return p;
}

VA_DEVICE bool sees(const Mask& mask, int b, int limit, int j) { return j < limit && !mask.hides(b, j); }

// A block turns a row of scores into probabilities; queries first .. of a (batch, head).
template <class T>
VA_KERNEL(kRowThreads)
softmax_kernel(const float* scores, T* probs, int64_t stride, float* lse, Mask mask, int b, int first,
               float scale) {
  const Shared<float> scratch = shared_memory<float>(0);
  const int limit = mask.limit(first + block_x());
  scores += block_x() * stride;
  probs += block_x() * stride;
  float top = -INFINITY, sum = 0, s[kRun];
  for (int j0 = thread_index() * kRun; j0 < limit; j0 += kRowThreads * kRun) {
    load_values(s, scores + j0);
    float highest = top, part = 0;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      s[i] = sees(mask, b, limit, j0 + i) ? s[i] * scale : -INFINITY;
      highest = fmaxf(highest, s[i]);
    }
    const float offset = highest == -INFINITY ? 0.0f : highest;
#pragma unroll
    for (int i = 0; i < kRun; ++i) part += exp_of(s[i] - offset);
    sum = sum * exp_of(top - offset) + part;
    top = highest;
  }
  const float highest = block_max<kRowThreads>(top, scratch);
  const float offset = highest == -INFINITY ? 0.0f : highest;
  const float total = block_sum<kRowThreads>(sum * exp_of(top - offset), scratch);
  const float factor = total > 0 ? 1.0f / total : (total == 0 ? 0.0f : total);  // no key: 0; NaN stays
  for (int j0 = thread_index() * kRun; j0 < stride; j0 += kRowThreads * kRun) {
    load_values(s, scores + j0);
#pragma unroll
    for (int i = 0; i < kRun; ++i)
      s[i] = sees(mask, b, limit, j0 + i) ? exp_of(s[i] * scale - offset) * factor : 0.0f;
    store_values(probs + j0, s);
  }
  if (thread_index() == 0) lse[block_x()] = total == 0 ? INFINITY : highest + logf(total);
}

// A block turns a row of scores S and one of dP = dY V^T into probabilities and dS.
template <class T>
struct Gradients {
  const float *scores, *dscores;
  T *probs, *ds;
  int64_t stride;
  const float* lse;       // of query `first`
  const T *y, *dy;        // the same
  int64_t y_row, dy_row;  // strides
  Mask mask;
  int dim, b, first;
  float scale;
};

template <class T>
VA_KERNEL(kRowThreads)
gradients_kernel(const VA_PARAMETER Gradients<T> p) {
  const Shared<float> scratch = shared_memory<float>(0);
  const int64_t row = block_x();
  const T *const y = p.y + row * p.y_row, *const dy = p.dy + row * p.dy_row;
  float delta = 0;
  for (int c = thread_index(); c < p.dim; c += kRowThreads) delta += to_float(dy[c]) * to_float(y[c]);
  delta = block_sum<kRowThreads>(delta, scratch);
  const float lse = p.lse[row];
  const int limit = p.mask.limit(p.first + block_x());
  for (int j0 = thread_index() * kRun; j0 < p.stride; j0 += kRowThreads * kRun) {
    float s[kRun], d[kRun];
    load_values(s, p.scores + row * p.stride + j0);
    load_values(d, p.dscores + row * p.stride + j0);
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const bool seen = sees(p.mask, p.b, limit, j0 + i);
      s[i] = seen ? exp_of(s[i] * p.scale - lse) : 0.0f;
      d[i] = seen ? s[i] * (d[i] - delta) * p.scale : 0.0f;
    }
    store_values(p.probs + row * p.stride + j0, s);
    store_values(p.ds + row * p.stride + j0, d);
  }
}

// A block copies a row; rows past `rows` become zero.
template <class From, class To>
VA_KERNEL(kRowThreads)
copy_rows_kernel(const From* from, int64_t from_row, To* to, int64_t to_row, int rows, int dim) {
  const int64_t row = block_x();
  for (int c = thread_index(); c < dim; c += kRowThreads)
    to[row * to_row + c] = block_x() < rows ? from_float<To>(to_float(from[row * from_row + c])) : To{};
}

// One (batch, head) of a call.
template <class T, class Args>
struct Head {
  const Args& a;
  const Plan plan;
  Stream stream;
  int b = 0, h = 0;
  char* const memory = a.workspace.template ptr<char>();
  const int64_t queries = a.q.sizes[1], keys = a.k.sizes[1], dim = a.q.sizes[3];
  const Mask mask = mask_of(a.key_padding, a.q, a.k, a.causal);
  const float scale = static_cast<float>(a.scale);
  float* const scores = at<float>(plan.scores);
  T* const probs = at<T>(plan.probs);

  template <class U>
  U* at(int64_t offset) const {
    return reinterpret_cast<U*>(memory + offset);
  }
  T* row(const TensorView& x, int64_t n) const { return heads_of<T>(x).row(b, h, static_cast<int>(n)); }
  // Rows n .. of a tensor as the rows of an operand, and the tensor transposed.
  Operand rows(const TensorView& x, int64_t n) const { return {row(x, n), x.strides[1], 1}; }
  Operand columns(const TensorView& x, int64_t n) const { return {row(x, n), 1, x.strides[1]}; }
  // The same of probs or ds.
  Operand rows(const T* x) const { return {x, plan.stride, 1}; }
  Operand columns(const T* x) const { return {x, 1, plan.stride}; }

  // All rows of x, transposed, for a sum over plan.stride keys.
  Operand padded_columns(const TensorView& x) const {
    if (plan.stride == keys) return columns(x, 0);
    T* const to = at<T>(plan.padded);
    launch("attention", copy_rows_kernel<T, T>, {static_cast<unsigned>(plan.stride)}, kRowThreads, 0, stream,
           static_cast<const T*>(row(x, 0)), x.strides[1], to, dim, static_cast<int>(keys),
           static_cast<int>(dim));
    return {to, 1, dim};
  }

  void multiply(int64_t m, int64_t n, int64_t k, Operand x, Operand w, float* y, int64_t y_row,
                bool add = false) const {
    Gemm g = product(a.q.dtype, m, n, k, x, w);
    g.epilogue.wide = sizeof(T) == 2;
    if (add) g.epilogue.residual = y, g.epilogue.residual_row = y_row;
    run(g, y, y_row * 4);
  }
  void multiply(int64_t m, int64_t n, int64_t k, Operand x, Operand w, const TensorView& y,
                int64_t n0) const {
    Gemm g = product(a.q.dtype, m, n, k, x, w);
    run(g, row(y, n0), y.strides[1] * static_cast<int64_t>(sizeof(T)));
  }

 private:
  void run(Gemm& g, void* y, int64_t row_bytes) const {
    g.tf32 = a.tf32;
    g.epilogue.y = y;
    g.epilogue.y_row = row_bytes / static_cast<int64_t>(g.epilogue.wide ? 4 : sizeof(T));
    g.epilogue.vectors = (reinterpret_cast<uintptr_t>(y) | static_cast<uintptr_t>(row_bytes)) % 16 == 0;
    linear_gemm::run_product(g, memory + plan.shared_sums, a.workspace.numel() - plan.shared_sums, stream);
  }
};

template <class F>
void dispatch_type(DType dtype, F&& f) {
  if (dtype == DType::f16) return f(Half{});
  if (dtype == DType::bf16) return f(BFloat16{});
  f(float{});
}

template <class T, class Args, class F>
void for_heads(const Args& a, const Plan& plan, Stream stream, F&& body) {
  Head<T, Args> head{a, plan, stream};
  for (head.b = 0; head.b < a.q.sizes[0]; ++head.b)
    for (head.h = 0; head.h < a.q.sizes[2]; ++head.h) body(head);
}

}  // namespace

bool cuda::attention_by_products(const TensorView& q, const TensorView& k) {
  constexpr int64_t kLongScores = 512 * 512;  // shorter ones are not worth three launches a head
  if (q.dtype == DType::f64) return false;
  return q.sizes[3] > 128 || (q.dtype == DType::f32 && q.sizes[1] * k.sizes[1] >= kLongScores);
}

int64_t cuda::attention_workspace(const TensorView& q, const TensorView& k, bool backward) {
  if (!attention_by_products(q, k)) return 0;
  return plan_of(q.dtype, q.sizes[1], k.sizes[1], q.sizes[3], backward).bytes;
}

void cuda::attention_forward_products(const AttentionForward& a, Stream stream) {
  const Plan plan = plan_of(a.q.dtype, a.q.sizes[1], a.k.sizes[1], a.q.sizes[3], false);
  dispatch_type(a.q.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_heads<T>(a, plan, stream, [&](const auto& head) {
      const Operand v = head.padded_columns(a.v);
      for (int64_t i = 0; i < head.queries; i += plan.rows) {
        const int64_t n = std::min(plan.rows, head.queries - i);
        head.multiply(n, head.keys, head.dim, head.rows(a.q, i), head.rows(a.k, 0), head.scores, plan.stride);
        float* const lse = a.lse.ptr<float>() + (head.b * a.q.sizes[2] + head.h) * head.queries + i;
        launch("attention", softmax_kernel<T>, {static_cast<unsigned>(n)}, kRowThreads,
               kRowThreads / kWarp * 4, stream, static_cast<const float*>(head.scores), head.probs,
               plan.stride, lse, head.mask, head.b, static_cast<int>(i), head.scale);
        head.multiply(n, head.dim, plan.stride, head.rows(head.probs), v, a.y, i);
      }
    });
  });
}

void cuda::attention_backward_products(const AttentionBackward& a, Stream stream) {
  const Plan plan = plan_of(a.q.dtype, a.q.sizes[1], a.k.sizes[1], a.q.sizes[3], true);
  dispatch_type(a.q.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_heads<T>(a, plan, stream, [&](const auto& head) {
      const Operand k = head.padded_columns(a.k);
      float *const dscores = head.template at<float>(plan.dscores),
                   *const sum_dk = head.template at<float>(plan.sum_dk),
                   *const sum_dv = head.template at<float>(plan.sum_dv);
      T* const ds = head.template at<T>(plan.ds);
      const bool whole = plan.rows == head.queries && plan.stride == head.keys;
      int64_t i = 0;
      do {  // once without queries: dK and dV are zero
        const int64_t n = std::min(plan.rows, head.queries - i);
        head.multiply(n, head.keys, head.dim, head.rows(a.q, i), head.rows(a.k, 0), head.scores, plan.stride);
        head.multiply(n, head.keys, head.dim, head.rows(a.dy, i), head.rows(a.v, 0), dscores, plan.stride);
        const Gradients<T> p{
            head.scores,      dscores,
            head.probs,       ds,
            plan.stride,      a.lse.ptr<float>() + (head.b * a.q.sizes[2] + head.h) * head.queries + i,
            head.row(a.y, i), head.row(a.dy, i),
            a.y.strides[1],   a.dy.strides[1],
            head.mask,        static_cast<int>(head.dim),
            head.b,           static_cast<int>(i),
            head.scale};
        launch("attention", gradients_kernel<T>, {static_cast<unsigned>(n)}, kRowThreads,
               kRowThreads / kWarp * 4, stream, p);
        head.multiply(n, head.dim, plan.stride, head.rows(ds), k, a.dq, i);
        const Operand dy = head.columns(a.dy, i), q = head.columns(a.q, i);
        if (whole) {
          head.multiply(head.keys, head.dim, n, head.columns(head.probs), dy, a.dv, 0);
          head.multiply(head.keys, head.dim, n, head.columns(ds), q, a.dk, 0);
        } else {
          head.multiply(plan.stride, head.dim, n, head.columns(head.probs), dy, sum_dv, head.dim, i > 0);
          head.multiply(plan.stride, head.dim, n, head.columns(ds), q, sum_dk, head.dim, i > 0);
        }
        i += plan.rows;
      } while (i < head.queries);
      if (whole) return;
      const auto store = [&](const float* sum, const TensorView& to) {
        launch("attention", copy_rows_kernel<float, T>, {static_cast<unsigned>(head.keys)}, kRowThreads, 0,
               stream, sum, head.dim, head.row(to, 0), to.strides[1], static_cast<int>(head.keys),
               static_cast<int>(head.dim));
      };
      store(sum_dk, a.dk);
      store(sum_dv, a.dv);
    });
  });
}

}  // namespace va
