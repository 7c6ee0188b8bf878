// SPDX-License-Identifier: Apache-2.0
// One launch for many tensors: their addresses travel as a kernel argument, and a block finds its tensor
// there.
#include "kernels/adamw/adamw.h"

#include <cmath>

#include "core/dispatch.h"
#include "kernels/common/vectors.cuh"

namespace va {
namespace {

using namespace simt;

constexpr int kThreads = 256;
constexpr int kTensors = 64;  // a launch; kernel arguments must stay below 4 KB

struct Entry {
  void *param, *grad, *exp_avg, *exp_avg_sq;
  int64_t numel;
  int first_chunk;
  bool aligned;  // to 16 bytes, all four
};
struct Batch {
  int count = 0, chunks = 0;
  Entry tensors[kTensors];
};

template <class C>
struct Factors {
  C grad_scale, decay, one_minus_beta1, beta2, one_minus_beta2, step_size, root_correction, eps;
  // Where the step is known to the GPU only, step_size and root_correction follow from these.
  const int64_t* step;
  double lr, log_beta1, log_beta2;
};

VA_DEVICE float sqrt_of(float x) { return sqrtf(x); }
VA_DEVICE double sqrt_of(double x) { return sqrt(x); }

VA_DEVICE const Entry& tensor_of(const Batch& batch, int chunk) {
  int low = 0, high = batch.count - 1;  // the last tensor that starts at or before the chunk
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (batch.tensors[middle].first_chunk <= chunk) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return batch.tensors[low];
}

// f(first element, std::integral_constant<int, elements>) for the elements of a chunk that belong to this
// thread.
template <class T, class F>
VA_DEVICE void for_elements(const Entry& t, int chunk, F&& f) {
  constexpr int kSize = Pack<T>::kSize;
  const int64_t begin = (chunk - t.first_chunk) * kAdamWChunk, left = t.numel - begin;
  const int count = static_cast<int>(left < kAdamWChunk ? left : kAdamWChunk);
  const int whole = t.aligned ? count / kSize * kSize : 0;
  for (int i = thread_index() * kSize; i < whole; i += kThreads * kSize) {
    f(begin + i, std::integral_constant<int, kSize>{});
  }
  for (int i = whole + thread_index(); i < count; i += kThreads)
    f(begin + i, std::integral_constant<int, 1>{});
}

template <class T>
VA_KERNEL(kThreads)
adamw_kernel(const VA_PARAMETER Batch batch, Factors<compute_t<T>> f) {
  using C = compute_t<T>;
  if (f.step) {
    const Shared<C> shared = shared_memory<C>(0);
    if (thread_index() == 0) {
      const double step = static_cast<double>(*f.step);
      shared[0] = static_cast<C>(f.lr / -expm1(step * f.log_beta1));
      shared[1] = static_cast<C>(1 / sqrt(-expm1(step * f.log_beta2)));
    }
    sync_block();
    f.step_size = shared[0];
    f.root_correction = shared[1];
  }
  const Entry& t = tensor_of(batch, block_x());
  T* const param = static_cast<T*>(t.param);
  const T* const grad = static_cast<const T*>(t.grad);
  C* const exp_avg = static_cast<C*>(t.exp_avg);
  C* const exp_avg_sq = static_cast<C*>(t.exp_avg_sq);
  for_elements<T>(t, block_x(), [&](int64_t i, auto size) {
    C p[size()], g[size()], m[size()], v[size()];
    load_values(p, param + i);
    load_values(g, grad + i);
    load_values(m, exp_avg + i);
    load_values(v, exp_avg_sq + i);
#pragma unroll
    for (int j = 0; j < size(); ++j) {
      g[j] *= f.grad_scale;
      m[j] += f.one_minus_beta1 * (g[j] - m[j]);
      v[j] = v[j] * f.beta2 + f.one_minus_beta2 * (g[j] * g[j]);
      p[j] = p[j] * f.decay - f.step_size * (m[j] / (sqrt_of(v[j]) * f.root_correction + f.eps));
    }
    store_values(exp_avg + i, m);
    store_values(exp_avg_sq + i, v);
    store_values(param + i, p);
  });
}

// Block i sums the squares of the chunks i, i + grid, ... in f64, on top of earlier batches.
template <class T>
VA_KERNEL(kThreads)
squares_kernel(const VA_PARAMETER Batch batch, double* parts, bool first) {
  const Shared<double> scratch = shared_memory<double>(0);
  double total = 0;
  for (int chunk = block_x(); chunk < batch.chunks; chunk += grid_x()) {
    const Entry& t = tensor_of(batch, chunk);
    const T* const grad = static_cast<const T*>(t.grad);
    for_elements<T>(t, chunk, [&](int64_t i, auto size) {
      compute_t<T> g[size()];
      load_values(g, grad + i);
#pragma unroll
      for (int j = 0; j < size(); ++j) total += static_cast<double>(g[j]) * static_cast<double>(g[j]);
    });
  }
  total = block_sum<kThreads>(total, scratch);
  if (thread_index() == 0) parts[block_x()] = first ? total : parts[block_x()] + total;
}

VA_KERNEL(kThreads) root_kernel(const double* parts, int count, double* norm) {
  const Shared<double> scratch = shared_memory<double>(0);
  double total = 0;
  for (int i = thread_index(); i < count; i += kThreads) total += parts[i];
  total = block_sum<kThreads>(total, scratch);
  if (thread_index() == 0) norm[0] = sqrt(total);
}

bool is_aligned(const AdamWTensor& t) {
  uintptr_t all = 0;
  for (const void* p : {t.param, t.grad, t.exp_avg, t.exp_avg_sq}) all |= reinterpret_cast<uintptr_t>(p);
  return all % 16 == 0;
}

// f(type tag, batch) for the tensors of each dtype, kTensors at a time.
template <class F>
void for_batches(const AdamWList& list, const char* what, F&& f) {
  for (const DType dtype : {DType::f32, DType::f64, DType::f16, DType::bf16}) {
    Batch batch;
    const auto flush = [&] {
      if (batch.count > 0) dispatch_float(dtype, what, [&](auto tag) { f(tag, batch); });
      batch.count = batch.chunks = 0;
    };
    for (int64_t i = 0; i < list.count; ++i) {
      const AdamWTensor& t = list.tensors[i];
      if (t.dtype != dtype) continue;
      const int64_t chunks = (t.numel + kAdamWChunk - 1) / kAdamWChunk;
      if (batch.count == kTensors || batch.chunks + chunks >= int64_t{1} << 31) flush();
      check(chunks < int64_t{1} << 31, "adamw: a tensor is too large for the GPU kernel");
      batch.tensors[batch.count++] = {t.param, t.grad,       t.exp_avg,    t.exp_avg_sq,
                                      t.numel, batch.chunks, is_aligned(t)};
      batch.chunks += static_cast<int>(chunks);
    }
    flush();
  }
}

template <class C>
Factors<C> factors(const AdamW& a) {
  const double step = static_cast<double>(a.step);
  return {static_cast<C>(a.grad_scale),
          static_cast<C>(1 - a.lr * a.weight_decay),
          static_cast<C>(1 - a.beta1),
          static_cast<C>(a.beta2),
          static_cast<C>(1 - a.beta2),
          static_cast<C>(a.lr / (1 - std::pow(a.beta1, step))),
          static_cast<C>(1 / std::sqrt(1 - std::pow(a.beta2, step))),
          static_cast<C>(a.eps),
          a.step_tensor.ptr<const int64_t>(),
          a.lr,
          std::log(a.beta1),
          std::log(a.beta2)};
}

constexpr int kScratchBytes = kThreads / kWarp * static_cast<int>(sizeof(double));

}  // namespace

void cuda::adamw(const AdamW& a, const AdamWList& list, Stream stream) {
  for_batches(list, "adamw: params", [&](auto tag, const Batch& batch) {
    using T = typename decltype(tag)::type;
    using C = compute_t<T>;
    launch("adamw", adamw_kernel<T>, {static_cast<unsigned>(batch.chunks)}, kThreads,
           2 * static_cast<int>(sizeof(C)), stream, batch, factors<C>(a));
  });
}

void cuda::grad_norm(const GradNorm& a, const AdamWList& list, Stream stream) {
  double* const parts = a.workspace.ptr<double>();
  const int blocks = std::min(static_cast<int>(kGradNormBlocks), 4 * multiprocessors());
  bool first = true;
  for_batches(list, "grad_norm: grads", [&](auto tag, const Batch& batch) {
    using T = typename decltype(tag)::type;
    launch("grad_norm", squares_kernel<T>, {static_cast<unsigned>(blocks)}, kThreads, kScratchBytes, stream,
           batch, parts, first);
    first = false;
  });
  launch("grad_norm", root_kernel, {1}, kThreads, kScratchBytes, stream, static_cast<const double*>(parts),
         first ? 0 : blocks, a.norm.ptr<double>());
}

}  // namespace va
