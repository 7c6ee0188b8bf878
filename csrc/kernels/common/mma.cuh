// SPDX-License-Identifier: Apache-2.0
// The primitives of simt.cuh that use tensor cores (sm_80).
#pragma once
#include "kernels/common/simt.cuh"

namespace va::simt {

// Four 8x8 matrices of 16-bit values: lane i gives the address of row i % 8 of matrix i / 8.
// Register j of a lane holds elements (lane / 4, 2 * (lane % 4) + {0, 1}) of matrix j; kTranspose swaps them.
// With 32-bit values the matrices are 8x4, and register j holds element (lane / 4, lane % 4).
template <bool kTranspose, class T>
VA_DEVICE void load_matrices(uint32_t (&r)[4], Shared<T> row) {
#ifdef VA_SIMT
  emulator::read_matrices<kTranspose>(r, row);
#else
  if constexpr (kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
#endif
}

// d += A B for A [16,16] row-major, B [16,8] column-major, T = Half or BFloat16, f32 accumulators.
// With g = lane / 4, t = lane % 4: a = {A[g][2t..], A[g+8][2t..], A[g][2t+8..], A[g+8][2t+8..]},
// b = {B[2t..][g], B[2t+8..][g]}, d = {D[g][2t], D[g][2t+1], D[g+8][2t], D[g+8][2t+1]}.
template <class T>
VA_DEVICE void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef VA_SIMT
  emulator::mma_16x8x16<T>(d, a, b0, b1);
#else
  if constexpr (std::is_same_v<T, Half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#endif
}

// d += A B for A [16,8] row-major, B [8,8] column-major in tf32: of f32, the upper 19 bits count. f32
// accumulators. a = {A[g][t], A[g+8][t], A[g][t+4], A[g+8][t+4]}, b = {B[t][g], B[t+4][g]}, d as above.
VA_DEVICE void mma_16x8x8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef VA_SIMT
  emulator::mma_16x8x8_tf32(d, a, b0, b1);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// The bits of x rounded to tf32.
VA_DEVICE uint32_t to_tf32(float x) {
  uint32_t bits;
#ifdef VA_SIMT
  std::memcpy(&bits, &x, 4);
  if (x == x) bits = (bits + 0x1000u) & 0xffffe000u;
#else
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#endif
  return bits;
}
VA_DEVICE float bits_to_float(uint32_t bits) {
#ifdef VA_SIMT
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
#else
  return __uint_as_float(bits);
#endif
}

}  // namespace va::simt
