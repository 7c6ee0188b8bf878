// SPDX-License-Identifier: Apache-2.0
// The primitives that our own GPU kernels are written with. Under nvcc they are the CUDA instructions;
// with VA_SIMT defined the same kernel source compiles for the host against tests/simt/emulator.h, which
// runs the threads of a block as fibers and reports races, so that kernels are tested without a GPU.
//
// Rules that keep a kernel testable: threads of a warp call warp primitives together; shared memory is
// reached only through Shared<T>; nothing returns before the last barrier of its block.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "core/check.h"
#include "core/device.h"
#include "core/dtype.h"

#ifdef VA_SIMT
#include "simt/emulator.h"
#define VA_DEVICE inline
#define VA_KERNEL(...) inline void
#define VA_PARAMETER
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define VA_DEVICE __device__ __forceinline__
#define VA_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)  // threads, least blocks a processor
#define VA_PARAMETER __grid_constant__  // an argument that is read in place, not copied to local memory
#endif

namespace va::simt {

inline constexpr int kWarp = 32;

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// 16 bytes of T: the widest access of one thread.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T v[kSize];
};

// --- where this thread is -------------------------------------------------------------------------------
#ifdef VA_SIMT
VA_DEVICE int thread_index() { return emulator::current().thread; }
VA_DEVICE int block_x() { return emulator::current().block_x; }
VA_DEVICE int block_y() { return emulator::current().block_y; }
VA_DEVICE int block_z() { return emulator::current().block_z; }
VA_DEVICE int grid_x() { return emulator::current().grid_x; }
#else
VA_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
VA_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
VA_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
VA_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
VA_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }
#endif
VA_DEVICE int lane_index() { return thread_index() % kWarp; }
VA_DEVICE int warp_index() { return thread_index() / kWarp; }

// --- 16-bit types ---------------------------------------------------------------------------------------
#ifdef VA_SIMT
VA_DEVICE float to_float(Half h) { return emulator::half_to_float(h.bits); }
VA_DEVICE float to_float(BFloat16 b) { return emulator::bfloat16_to_float(b.bits); }
template <class T>
VA_DEVICE T from_float(compute_t<T> x) {
  if constexpr (std::is_same_v<T, Half>)
    return Half{emulator::float_to_half(x)};
  else if constexpr (std::is_same_v<T, BFloat16>)
    return BFloat16{emulator::float_to_bfloat16(x)};
  else
    return static_cast<T>(x);
}
#else
VA_DEVICE float to_float(Half h) { return __half2float(__ushort_as_half(h.bits)); }
VA_DEVICE float to_float(BFloat16 b) { return __uint_as_float(static_cast<unsigned>(b.bits) << 16); }
template <class T>
VA_DEVICE T from_float(compute_t<T> x) {
  if constexpr (std::is_same_v<T, Half>)
    return Half{__half_as_ushort(__float2half_rn(x))};
  else if constexpr (std::is_same_v<T, BFloat16>)
    return BFloat16{__bfloat16_as_ushort(__float2bfloat16_rn(x))};
  else
    return static_cast<T>(x);
}
#endif
VA_DEVICE float to_float(float x) { return x; }
VA_DEVICE double to_float(double x) { return x; }

// Two 16-bit values in one 32-bit register, the first in the low half.
template <class T>
VA_DEVICE uint32_t pack2(float lo, float hi) {
  return static_cast<uint32_t>(from_float<T>(lo).bits) |
         (static_cast<uint32_t>(from_float<T>(hi).bits) << 16);
}

template <class T>
VA_DEVICE void unpack2(float (&out)[2], uint32_t word) {
  out[0] = to_float(T{static_cast<uint16_t>(word)});
  out[1] = to_float(T{static_cast<uint16_t>(word >> 16)});
}

// --- global memory, 16 bytes a thread -------------------------------------------------------------------
template <class T>
VA_DEVICE Pack<T> load16(const T* p) {
#ifdef VA_SIMT
  emulator::check_aligned(p, 16);
  return *reinterpret_cast<const Pack<T>*>(p);
#else
  // One instruction: copying the struct may load each element.
  const int4 raw = *reinterpret_cast<const int4*>(p);
  Pack<T> v;
  memcpy(&v, &raw, 16);
  return v;
#endif
}
template <class T>
VA_DEVICE void store16(T* p, const Pack<T>& v) {
#ifdef VA_SIMT
  emulator::check_aligned(p, 16);
  *reinterpret_cast<Pack<T>*>(p) = v;
#else
  uint32_t w[4];
  memcpy(w, &v, 16);
  asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
               : "memory");
#endif
}

// The same for 4 bytes: two 16-bit values as in pack2. (A memcpy of them would move single bytes.)
template <class T>
VA_DEVICE uint32_t load_pair(const T* p) {
#ifdef VA_SIMT
  emulator::check_aligned(p, 4);
  uint32_t word;
  std::memcpy(&word, p, 4);
  return word;
#else
  return *reinterpret_cast<const uint32_t*>(p);
#endif
}
template <class T>
VA_DEVICE void store_pair(T* p, uint32_t word) {
#ifdef VA_SIMT
  emulator::check_aligned(p, 4);
  std::memcpy(p, &word, 4);
#else
  *reinterpret_cast<uint32_t*>(p) = word;
#endif
}

// --- shared memory --------------------------------------------------------------------------------------
#ifdef VA_SIMT
template <class T>
using Shared = emulator::Shared<T>;
template <class T>
VA_DEVICE Shared<T> shared_memory(int byte_offset) {
  return Shared<T>(byte_offset);
}
template <class T>
VA_DEVICE Pack<T> load16(Shared<T> p) {
  return p.template load_pack<Pack<T>>();
}
template <class T>
VA_DEVICE void store16(Shared<T> p, const Pack<T>& v) {
  p.store_pack(v);
}
#else
template <class T>
using Shared = T*;  // store16 is for global memory: a Shared is filled element by element or by copy16_async
template <class T>
VA_DEVICE Shared<T> shared_memory(int byte_offset) {
  extern __shared__ __align__(1024) unsigned char va_shared_memory[];
  return reinterpret_cast<T*>(va_shared_memory + byte_offset);
}
VA_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
#endif

// --- barriers and warp collectives ----------------------------------------------------------------------
#ifdef VA_SIMT
VA_DEVICE void sync_block() { emulator::sync_block(); }
VA_DEVICE void sync_warp() { emulator::sync_warp(); }
template <class T>
VA_DEVICE T shuffle_xor(T x, int mask) {
  return emulator::shuffle(x, lane_index() ^ mask);
}
template <class T>
VA_DEVICE T shuffle(T x, int lane) {
  return emulator::shuffle(x, lane);
}
VA_DEVICE uint32_t ballot(bool yes) { return emulator::ballot(yes); }  // bit i: lane i's
#else
VA_DEVICE void sync_block() { __syncthreads(); }
VA_DEVICE void sync_warp() { __syncwarp(); }
template <class T>
VA_DEVICE T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}
template <class T>
VA_DEVICE T shuffle(T x, int lane) {
  return __shfl_sync(0xffffffffu, x, lane);
}
VA_DEVICE uint32_t ballot(bool yes) { return __ballot_sync(0xffffffffu, yes); }
#endif

template <class T>
VA_DEVICE T warp_sum(T x) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}
template <class T>
VA_DEVICE T warp_max(T x) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const T other = shuffle_xor(x, mask);
    x = x > other ? x : other;
  }
  return x;
}

// The sum over a block of kThreads, in every thread. scratch: kThreads / 32 values of shared memory.
template <int kThreads, class T>
VA_DEVICE T block_sum(T x, Shared<T> scratch) {
  x = warp_sum(x);
  if constexpr (kThreads == kWarp) return x;
  if (lane_index() == 0) scratch[warp_index()] = x;
  sync_block();
  T total = scratch[0];
  for (int w = 1; w < kThreads / kWarp; ++w) total += scratch[w];
  sync_block();  // scratch may be used again
  return total;
}

// The same of the largest value.
template <int kThreads, class T>
VA_DEVICE T block_max(T x, Shared<T> scratch) {
  x = warp_max(x);
  if (lane_index() == 0) scratch[warp_index()] = x;
  sync_block();
  x = scratch[0];
  for (int w = 1; w < kThreads / kWarp; ++w) {
    const T other = scratch[w];
    x = x > other ? x : other;
  }
  sync_block();
  return x;
}

// --- asynchronous copies global -> shared (sm_80) ---------------------------------------------------------
// Copies 16 bytes; zero-fills them when !valid (source is then not read).
template <class T>
VA_DEVICE void copy16_async(Shared<T> to, const T* from, bool valid) {
#ifdef VA_SIMT
  emulator::copy_async(to, from, valid);
#else
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(bytes));
#endif
}
VA_DEVICE void commit_copies() {
#ifdef VA_SIMT
  emulator::commit_copies();
#else
  asm volatile("cp.async.commit_group;");
#endif
}
// Waits until at most kPending of this thread's committed groups are unfinished. A barrier must follow
// before other threads' copies may be read.
template <int kPending>
VA_DEVICE void wait_copies() {
#ifdef VA_SIMT
  emulator::wait_copies(kPending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// --- special functions
// --------------------------------------------------------------------------------------
VA_DEVICE float fast_exp2(float x) {
#ifdef VA_SIMT
  return std::exp2(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}
VA_DEVICE float exp_of(float x) { return expf(x); }
VA_DEVICE double exp_of(double x) { return exp(x); }
VA_DEVICE float log_of(float x) { return logf(x); }
VA_DEVICE double log_of(double x) { return log(x); }
VA_DEVICE float rsqrt_of(float x) {
#ifdef VA_SIMT
  return 1.0f / std::sqrt(x);
#else
  return rsqrtf(x);
#endif
}
VA_DEVICE double rsqrt_of(double x) {
#ifdef VA_SIMT
  return 1.0 / std::sqrt(x);
#else
  return rsqrt(x);
#endif
}

// --- launch
// ---------------------------------------------------------------------------------------------------
#ifndef VA_SIMT
inline void cuda_check(cudaError_t e, const char* what) {
  if (e != cudaSuccess) fail(std::string(what) + ": " + cudaGetErrorString(e));
}
#endif

// launch("layer_norm", kernel<...>, grid, threads, shared bytes, stream, args...): args are copied.
template <class Kernel, class... Args>
void launch(const char* what, Kernel kernel, Dim3 grid, int threads, int shared_bytes, Stream stream,
            const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (grid.y > 65535 || grid.z > 65535)
    fail(std::string(what) + ": the tensors are too large for one call on a GPU");
#ifdef VA_SIMT
  (void)what, (void)stream;
  emulator::run({static_cast<int>(grid.x), static_cast<int>(grid.y), static_cast<int>(grid.z)}, threads,
                shared_bytes, [&] { kernel(args...); });
#else
  constexpr int kWithoutOptIn = 48 * 1024;
  if (shared_bytes > kWithoutOptIn) {
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), what);
  }
  kernel<<<dim3(grid.x, grid.y, grid.z), threads, shared_bytes, reinterpret_cast<cudaStream_t>(stream)>>>(
      args...);
  cuda_check(cudaGetLastError(), what);
#endif
}

// The number of multiprocessors, to size persistent grids; small in the emulator to exercise their loops.
inline int multiprocessors() {
#ifdef VA_SIMT
  return 2;
#else
  int device = 0, n = 0;
  cuda_check(cudaGetDevice(&device), "cudaGetDevice");
  cuda_check(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  return n;
#endif
}

// Of this GPU; the emulator is anything.
inline int capability_major() {
#ifdef VA_SIMT
  return 9;
#else
  int device = 0, major = 0;
  cuda_check(cudaGetDevice(&device), "cudaGetDevice");
  cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
             "cudaDeviceGetAttribute");
  return major;
#endif
}

}  // namespace va::simt
