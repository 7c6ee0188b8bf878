// SPDX-License-Identifier: Apache-2.0
// A group of threads per row: a warp for few classes, a block for many. The row comes from device memory once
// and then from the cache.
#include "kernels/cross_entropy/cross_entropy.h"

#include <cmath>

#include "core/dispatch.h"
#include "kernels/common/vectors.cuh"

namespace va {
namespace {

using namespace simt;

constexpr int kThreads = 256;
constexpr int kWarpClasses = 2048;  // up to here a warp has a row

template <class T>
struct Params {
  using C = compute_t<T>;
  const T* logits;
  int64_t stride;
  const int64_t* index;  // [rows], or null
  const C* target;       // [rows, K], where index is null
  int64_t rows;
  int classes;
  C keep, share;  // 1 - label smoothing, and its share of each class
  int64_t ignore_index;
  C* lse;
  C* losses;  // forward
  const C* dloss;
  C* scale;  // backward of the mean: 1 / rows that count
  bool per_row;
  T* dlogits;
  int64_t dlogits_stride;
  C* dtarget;
  int64_t dtarget_stride;
};

template <int kGroup, class C>
VA_DEVICE C group_sum(C x, Shared<C> scratch) {
  if constexpr (kGroup == kWarp) return warp_sum(x);
  return block_sum<kGroup>(x, scratch);
}
template <int kGroup, class C>
VA_DEVICE C group_max(C x, Shared<C> scratch) {
  x = warp_max(x);
  if constexpr (kGroup == kWarp) return x;
  if (lane_index() == 0) scratch[warp_index()] = x;
  sync_block();
  for (int w = 0; w < kGroup / kWarp; ++w) {
    const C other = scratch[w];
    x = x > other ? x : other;
  }
  sync_block();
  return x;
}

// f(first column) for every kSize columns that belong to this thread.
template <int kGroup, int kSize, class F>
VA_DEVICE void for_columns(int classes, F&& f) {
#pragma unroll 1  // the iterations of one thread are few, and calls of exp in f64 spill with more
  for (int i = thread_index() % kGroup * kSize; i < classes; i += kGroup * kSize) f(i);
}

template <class T, int kGroup, int kSize>
VA_KERNEL(kThreads)
forward_kernel(Params<T> p) {
  using C = compute_t<T>;
  const Shared<C> scratch = shared_memory<C>(0);
  const int64_t step = static_cast<int64_t>(grid_x()) * (kThreads / kGroup);
  for (int64_t row = block_x() * int64_t{kThreads / kGroup} + thread_index() / kGroup; row < p.rows;
       row += step) {
    const T* const x = p.logits + row * p.stride;
    C highest = -INFINITY;
    for_columns<kGroup, kSize>(p.classes, [&](int i) {
      C v[kSize];
      load_values(v, x + i);
#pragma unroll
      for (int j = 0; j < kSize; ++j) highest = v[j] > highest ? v[j] : highest;
    });
    highest = group_max<kGroup>(highest, scratch);
    C sum = 0;
    for_columns<kGroup, kSize>(p.classes, [&](int i) {
      C v[kSize];
      load_values(v, x + i);
#pragma unroll
      for (int j = 0; j < kSize; ++j) sum += exp_of(v[j] - highest);
    });
    const C log_sum = log_of(group_sum<kGroup>(sum, scratch));
    C total = 0;  // of -t' logp
    if (!p.index || p.share != C(0)) {
      for_columns<kGroup, kSize>(p.classes, [&](int i) {
        C v[kSize], t[kSize] = {};
        load_values(v, x + i);
        if (!p.index) load_values(t, p.target + row * p.classes + i);
#pragma unroll
        for (int j = 0; j < kSize; ++j) total += (t[j] * p.keep + p.share) * (log_sum - (v[j] - highest));
      });
      total = group_sum<kGroup>(total, scratch);
    }
    if (thread_index() % kGroup != 0) continue;
    p.lse[row] = highest + log_sum;
    if (p.index) {
      const int64_t at = p.index[row];
      if (at == p.ignore_index) {
        total = 0;
      } else {
        const C picked = at >= 0 && at < p.classes ? C(to_float(x[at])) : C(NAN);
        total += p.keep * (log_sum - (picked - highest));
      }
    }
    p.losses[row] = total;
  }
}

// One block: the sum or mean of the losses, or with losses null only 1 / the rows that count. In f64 and in
// an order that depends on the number of rows alone.
template <class C>
VA_KERNEL(kThreads)
reduce_kernel(const C* losses, const int64_t* index, int64_t rows, int64_t ignore_index, bool mean, C* out) {
  const Shared<double> scratch = shared_memory<double>(0);
  double total = 0, count = 0;
  for (int64_t i = thread_index(); i < rows; i += kThreads) {
    if (losses) total += losses[i];
    count += !index || index[i] != ignore_index ? 1 : 0;
  }
  total = block_sum<kThreads>(total, scratch);
  count = block_sum<kThreads>(count, scratch);
  if (thread_index() == 0) out[0] = static_cast<C>(losses ? (mean ? total / count : total) : 1 / count);
}

template <class T, int kGroup, int kSize>
VA_KERNEL(kThreads)
backward_kernel(Params<T> p) {
  using C = compute_t<T>;
  const Shared<C> scratch = shared_memory<C>(0);
  const int64_t step = static_cast<int64_t>(grid_x()) * (kThreads / kGroup);
  for (int64_t row = block_x() * int64_t{kThreads / kGroup} + thread_index() / kGroup; row < p.rows;
       row += step) {
    const T* const x = p.logits + row * p.stride;
    const C lse = p.lse[row];
    C g = p.per_row ? p.dloss[row] : p.dloss[0] * (p.scale ? p.scale[0] : C(1));
    const int64_t at = p.index ? p.index[row] : 0;
    C sum = 1;  // of t'
    if (!p.index) {
      sum = 0;
      for_columns<kGroup, kSize>(p.classes, [&](int i) {
        C t[kSize];
        load_values(t, p.target + row * p.classes + i);
#pragma unroll
        for (int j = 0; j < kSize; ++j) sum += t[j] * p.keep + p.share;
      });
      sum = group_sum<kGroup>(sum, scratch);
    } else if (at != p.ignore_index && (at < 0 || at >= p.classes)) {
      g = C(NAN);
    }
    for_columns<kGroup, kSize>(p.classes, [&](int i) {
      C v[kSize], t[kSize] = {};
      load_values(v, x + i);
      if (!p.index) load_values(t, p.target + row * p.classes + i);
      if (p.dtarget) {
        C dt[kSize];
#pragma unroll
        for (int j = 0; j < kSize; ++j) dt[j] = g * p.keep * (lse - v[j]);
        store_values(p.dtarget + row * p.dtarget_stride + i, dt);
      }
      if (!p.dlogits) return;
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        const C one_hot = p.index && i + j == at ? C(1) : t[j];
        v[j] = g * (exp_of(v[j] - lse) * sum - (one_hot * p.keep + p.share));
        if (p.index && at == p.ignore_index) v[j] = 0;
      }
      store_values(p.dlogits + row * p.dlogits_stride + i, v);
    });
  }
}

template <class T, class A>
Params<T> params_of(const A& a) {
  using C = compute_t<T>;
  Params<T> p{};
  p.logits = a.logits.template ptr<const T>();
  p.stride = a.logits.strides[0];
  p.rows = a.logits.sizes[0];
  check(a.logits.sizes[1] < (int64_t{1} << 31) - kThreads * 16,
        "cross_entropy: too many classes for the GPU kernel");
  p.classes = static_cast<int>(a.logits.sizes[1]);
  const bool indices = a.target.dtype == DType::i64;
  p.index = indices ? a.target.template ptr<const int64_t>() : nullptr;
  p.target = indices ? nullptr : a.target.template ptr<const C>();
  p.keep = static_cast<C>(1 - a.label_smoothing);
  p.share = static_cast<C>(a.label_smoothing / static_cast<double>(p.classes));
  p.ignore_index = a.ignore_index;
  p.lse = a.lse.template ptr<C>();
  return p;
}

// f(threads a row, columns an access).
template <class T, class F>
void dispatch_row(int64_t classes, bool aligned, F&& f) {
  const auto by_size = [&](auto size) {
    if (classes <= kWarpClasses) {
      f(std::integral_constant<int, kWarp>{}, size);
    } else {
      f(std::integral_constant<int, kThreads>{}, size);
    }
  };
  if constexpr (sizeof(T) == 8) {
    by_size(std::integral_constant<int, 1>{});  // more would spill
  } else {
    dispatch_vector<T>(aligned && classes % Pack<T>::kSize == 0, by_size);
  }
}

constexpr int kScratchBytes = kThreads / kWarp * static_cast<int>(sizeof(double));

template <class T>
void reduce(const Params<T>& p, const compute_t<T>* losses, bool mean, compute_t<T>* out, Stream stream) {
  launch("cross_entropy", reduce_kernel<compute_t<T>>, {1}, kThreads, kScratchBytes, stream, losses, p.index,
         p.rows, p.ignore_index, mean, out);
}

}  // namespace

void cuda::cross_entropy_forward(const CrossEntropyForward& a, Stream stream) {
  const bool aligned = aligned16(a.logits) && (a.target.dtype == DType::i64 || aligned16(a.target));
  dispatch_float(a.logits.dtype, "cross_entropy: logits", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = compute_t<T>;
    Params<T> p = params_of<T>(a);
    const bool none = a.reduction == Reduction::none;
    p.losses = (none ? a.loss : a.losses).template ptr<C>();
    dispatch_row<T>(p.classes, aligned, [&](auto group, auto size) {
      launch("cross_entropy", forward_kernel<T, group(), size()>, {blocks_for(p.rows, kThreads / group())},
             kThreads, kScratchBytes, stream, p);
    });
    if (!none) reduce<T>(p, p.losses, a.reduction == Reduction::mean, a.loss.ptr<C>(), stream);
  });
}

void cuda::cross_entropy_backward(const CrossEntropyBackward& a, Stream stream) {
  const bool aligned = aligned16(a.logits) && (a.target.dtype == DType::i64 || aligned16(a.target)) &&
                       aligned16(a.dlogits) && aligned16(a.dtarget);
  dispatch_float(a.logits.dtype, "cross_entropy: logits", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = compute_t<T>;
    Params<T> p = params_of<T>(a);
    p.dloss = a.dloss.ptr<const C>();
    p.per_row = a.reduction == Reduction::none;
    p.dlogits = a.dlogits.ptr<T>();
    p.dtarget = a.dtarget.ptr<C>();
    if (a.dlogits.defined()) p.dlogits_stride = a.dlogits.strides[0];
    if (a.dtarget.defined()) p.dtarget_stride = a.dtarget.strides[0];
    if (a.reduction == Reduction::mean) {
      p.scale = a.scale.ptr<C>();
      reduce<T>(p, nullptr, true, p.scale, stream);
    }
    dispatch_row<T>(p.classes, aligned, [&](auto group, auto size) {
      launch("cross_entropy", backward_kernel<T, group(), size()>, {blocks_for(p.rows, kThreads / group())},
             kThreads, kScratchBytes, stream, p);
    });
  });
}

}  // namespace va
