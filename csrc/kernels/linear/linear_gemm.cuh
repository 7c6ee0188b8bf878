// SPDX-License-Identifier: Apache-2.0
// What every GPU matrix product of linear shares: its description, and the epilogue that finishes a run of
// neighbouring outputs. No CUTLASS here, so that the emulator in tests/simt runs this epilogue too.
#pragma once
#include "core/tensor_view.h"
#include "kernels/common/activation_math.cuh"
#include "kernels/common/vectors.cuh"

namespace va::linear_gemm {

using simt::Pack;

// An operand as the product sees it: element (i, k) is data[i * row + k * col].
struct Operand {
  const void* data = nullptr;
  int64_t row = 0, col = 0;
};

// y = residual + scale * act(product + bias); z = product + bias. Null pointers are absent parts.
// With `input`, for a gradient: y = product * act'(input), and nothing else.
struct Epilogue {
  const void* bias = nullptr;      // [n] as the operands
  const void* scale = nullptr;     // [n] as the operands, or f32
  const void* residual = nullptr;  // [m, n] as y
  const void* input = nullptr;     // [m, n] as the operands
  void* y = nullptr;               // [m, n] as the operands, or f32
  void* z = nullptr;               // [m, n] as the operands
  int64_t residual_row = 0, input_row = 0, y_row = 0, z_row = 0;
  Activation activation = Activation::none;
  bool wide = false;        // y and residual are f32 beside 16-bit operands
  bool wide_scale = false;  // scale is
  bool vectors = false;     // 16-byte accesses are right for all of the above
};

// product[m, n] = a[m, k] b[n, k]^T in f32 (f64 for f64).
struct Gemm {
  DType dtype;
  int64_t m, n, k;
  Operand a, b;
  Epilogue epilogue;
  bool tf32 = false;           // f32 operands may be rounded to tf32
  bool deterministic = false;  // the kernel must not depend on m
  // The sum over k is cut into this many parts of `chunk` (the last is shorter); the sums go to
  // partial [splits, m, n] (f32, f64 for f64) and join_splits applies the epilogue.
  int splits = 1;
  int64_t chunk = 0;
  void* partial = nullptr;
};

// `count` of kV values from base + offset on; whole 16-byte packs where `vectors` allows.
template <class T, int kV, class C>
VA_DEVICE void load_run(const void* base, int64_t offset, int count, bool vectors, C (&out)[kV]) {
  const T* const p = static_cast<const T*>(base) + offset;
  constexpr int kPack = Pack<T>::kSize;
  if constexpr (kV % kPack == 0) {
    if (vectors && count == kV) return simt::load_values(out, p);
  }
#pragma unroll
  for (int i = 0; i < kV; ++i) out[i] = i < count ? C(simt::to_float(p[i])) : C(0);
}

template <class T, int kV, class C>
VA_DEVICE void store_run(void* base, int64_t offset, int count, bool vectors, const C (&in)[kV]) {
  T* const p = static_cast<T*>(base) + offset;
  constexpr int kPack = Pack<T>::kSize;
  if constexpr (kV % kPack == 0) {
    if (vectors && count == kV) return simt::store_values(p, in);
  }
#pragma unroll
  for (int i = 0; i < kV; ++i)
    if (i < count) p[i] = simt::from_float<T>(in[i]);
}

// T or, when `wide`, its compute type.
template <class T, int kV>
VA_DEVICE void load_run_of(bool wide, const void* base, int64_t offset, int count, bool vectors,
                           compute_t<T> (&out)[kV]) {
  if (wide)
    load_run<compute_t<T>>(base, offset, count, vectors, out);
  else
    load_run<T>(base, offset, count, vectors, out);
}

// Finishes the outputs (row, col) ... (row, col + kV - 1), of which `count` exist.
template <class T, int kV>
VA_DEVICE void finish_run(const Epilogue& e, int64_t row, int64_t col, int count, compute_t<T> (&v)[kV]) {
  using C = compute_t<T>;
  C other[kV];
  if (e.input) {
    load_run<T>(e.input, row * e.input_row + col, count, e.vectors, other);
    gpu::times_derivative<sizeof(T) == 2>(e.activation, other, v);
    return store_run<T>(e.y, row * e.y_row + col, count, e.vectors, v);
  }
  if (e.bias) {
    load_run<T>(e.bias, col, count, e.vectors, other);
#pragma unroll
    for (int i = 0; i < kV; ++i) v[i] += other[i];
  }
  if (e.z) store_run<T>(e.z, row * e.z_row + col, count, e.vectors, v);
  gpu::activate<sizeof(T) == 2>(e.activation, v);
  if (e.scale) {
    load_run_of<T>(e.wide_scale, e.scale, col, count, e.vectors, other);
#pragma unroll
    for (int i = 0; i < kV; ++i) v[i] *= other[i];
  }
  if (e.residual) {
    load_run_of<T>(e.wide, e.residual, row * e.residual_row + col, count, e.vectors, other);
#pragma unroll
    for (int i = 0; i < kV; ++i) v[i] += other[i];
  }
  if (e.wide)
    store_run<C>(e.y, row * e.y_row + col, count, e.vectors, v);
  else
    store_run<T>(e.y, row * e.y_row + col, count, e.vectors, v);
}

// Any product, by the kernel that is best for it. Scratch of scratch_of(gemm) bytes is needed for a sum that
// is cut or shared between blocks: of products that, like a gradient by a weight, sum over rows.
void run_product(Gemm gemm, void* scratch, int64_t scratch_bytes, Stream stream);
int64_t scratch_of(const Gemm& gemm);

// Products of any strides, sizes and dtype; what the tensor-core kernels do not take comes here.
void run_generic(const Gemm& gemm, Stream stream);

// Adds the parts of a product in order and applies the epilogue.
void join_splits(const Gemm& gemm, Stream stream);

// Products on tensor cores, by CUTLASS; false when these operands are not for them.
// `scratch` is memory for stream-K, at least tensor_core_scratch bytes.
bool run_tensor_cores(const Gemm& gemm, void* scratch, int64_t scratch_bytes, Stream stream);
int64_t tensor_core_scratch(const Gemm& gemm);

// For tuning: the kernel to take where it can; empty: the choice of linear_tiles.h.
void force_tile(const std::string& name);

}  // namespace va::linear_gemm
