// SPDX-License-Identifier: Apache-2.0
// Convolutions on tensor cores, for every GPU from sm_80 on, of 16-bit images and of f32 ones (in tf32, or
// with three products of tf32 as exact as f32): an implicit matrix product whose patches are gathered by
// asynchronous copies, kStages blocks of the sum in flight. Two forms: forward (and the gradient by x), and
// the gradient by the weight. The emulator of tests/simt runs both.
#include "kernels/common/mma.cuh"
#include "kernels/conv2d/conv2d.cuh"

namespace va::conv {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kM = 128;  // rows of a block's tile
constexpr int kStages = 3;
constexpr int kDepthBytes = 64;  // of the sum at a time
template <class T>
constexpr int kDepth = kDepthBytes / static_cast<int>(sizeof(T));
constexpr int kSteps = kDepthBytes / 32;  // of one mma each
template <class T>
constexpr int kChunk = 16 / static_cast<int>(sizeof(T));  // elements of one copy

// The block's tile kM x kN is cut into warp tiles.
template <int kN>
struct Cut {
  static constexpr int kWarpsN = kN >= 64 ? 2 : 1, kWarpsM = kWarps / kWarpsN;
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;
  static constexpr int kTilesM = kWarpM / 16, kTilesN = kWarpN / 8;  // of mma m16n8
  static VA_DEVICE int first_m() { return warp_index() % kWarpsM * kWarpM; }
  static VA_DEVICE int first_n() { return warp_index() / kWarpsM * kWarpN; }
};

// Operand [rows, kDepth] in shared memory, depth contiguous. Chunks change places within a row, so that the
// 8 rows that load_matrices reads at once lie in different banks.
template <class T>
struct DepthMajor {
  Shared<T> base;
  VA_DEVICE Shared<T> chunk(int row, int chunk) const {
    return base + (row * kDepth<T> + (chunk ^ (row / 2 % 4)) * kChunk<T>);
  }
  VA_DEVICE void load_a(uint32_t (&a)[4], int row, int step) const {
    const int lane = lane_index();
    load_matrices<false>(a, chunk(row + lane % 16, 2 * step + lane / 16));
  }
  VA_DEVICE void load_b(uint32_t (&b)[4], int row, int step) const {  // two tiles of 8 columns
    const int lane = lane_index();
    load_matrices<false>(b, chunk(row + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
  }
};

// Operand [kDepth, kRows], rows contiguous.
template <class T, int kRows>
struct RowMajor {
  Shared<T> base;
  VA_DEVICE Shared<T> chunk(int depth, int chunk) const {
    return base + (depth * kRows + (chunk ^ (depth % 8)) * kChunk<T>);
  }
  VA_DEVICE void load_a(uint32_t (&a)[4], int row, int step) const {
    const int lane = lane_index();
    load_matrices<true>(a, chunk(step * 16 + lane / 16 * 8 + lane % 8, row / kChunk<T> + lane / 8 % 2));
  }
  VA_DEVICE void load_b(uint32_t (&b)[4], int row, int step) const {
    const int lane = lane_index();
    load_matrices<true>(b, chunk(step * 16 + lane / 8 % 2 * 8 + lane % 8, row / kChunk<T> + lane / 16));
  }
};

// How f32 is multiplied; of no meaning for 16-bit types.
enum class F32 { exact, tf32 };

// x as tf32 values: their sum is x to 22 bits.
template <int n>
VA_DEVICE void split(uint32_t (&x)[n], uint32_t (&rest)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const float value = bits_to_float(x[i]);
    x[i] = to_tf32(value);
    rest[i] = to_tf32(value - bits_to_float(x[i]));
  }
}

template <class T, F32 f32>
VA_DEVICE void multiply_tile(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&a_rest)[4],
                             const uint32_t* b, const uint32_t* b_rest) {
  if constexpr (!std::is_same_v<T, float>) {
    mma_16x8x16<T>(acc, a, b[0], b[1]);
  } else if constexpr (f32 == F32::tf32) {
    mma_16x8x8_tf32(acc, a, b[0], b[1]);
  } else {
    // Tensor cores cut what they add up, rounding does not: a long sum is made by the other units.
    float part[4] = {};
    mma_16x8x8_tf32(part, a_rest, b[0], b[1]);
    mma_16x8x8_tf32(part, a, b_rest[0], b_rest[1]);
    mma_16x8x8_tf32(part, a, b[0], b[1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[i] += part[i];
  }
}

// One block of the sum.
template <class T, int kN, F32 f32, class A, class B>
VA_DEVICE void multiply(float (&acc)[Cut<kN>::kTilesM][Cut<kN>::kTilesN][4], const A& a, const B& b) {
  using C = Cut<kN>;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    uint32_t left[C::kTilesM][4], left_rest[C::kTilesM][4];
#pragma unroll
    for (int m = 0; m < C::kTilesM; ++m) {
      a.load_a(left[m], C::first_m() + m * 16, step);
      if constexpr (std::is_same_v<T, float>) split(left[m], left_rest[m]);
    }
#pragma unroll
    for (int n = 0; n < C::kTilesN; n += 2) {
      uint32_t right[4], right_rest[4];
      b.load_b(right, C::first_n() + n * 8, step);
      if constexpr (std::is_same_v<T, float>) split(right, right_rest);
#pragma unroll
      for (int m = 0; m < C::kTilesM; ++m) {
        multiply_tile<T, f32>(acc[m][n], left[m], left_rest[m], right, right_rest);
        multiply_tile<T, f32>(acc[m][n + 1], left[m], left_rest[m], right + 2, right_rest + 2);
      }
    }
  }
}

// steps blocks of the sum: load(stage) starts the copies of the next one, compute(stage) uses it.
template <class Load, class Compute>
VA_DEVICE void pipeline(int steps, Load&& load, Compute&& compute) {
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) load(s);
    commit_copies();
  }
  for (int s = 0; s < steps; ++s) {
    wait_copies<kStages - 2>();
    sync_block();  // and everybody has used the stage that is filled next
    if (s + kStages - 1 < steps) load((s + kStages - 1) % kStages);
    commit_copies();
    compute(s % kStages);
  }
}

template <int kN>
constexpr int kStageBytes = (kM + kN) * kDepthBytes;

// Through shared memory, so that a thread finishes kChunk neighbouring channels of a pixel.
template <class T, int kN>
VA_DEVICE void finish_tile(const Conv& p, float (&acc)[Cut<kN>::kTilesM][Cut<kN>::kTilesN][4], int m0,
                           int n0) {
  using C = Cut<kN>;
  constexpr int kRows = 32, kStride = C::kWarpN + 4, kRuns = C::kWarpN / kChunk<T>;
  static_assert(kWarps * kRows * kStride * 4 <= kStages * kStageBytes<kN>);
  const Shared<float> mine = shared_memory<float>(warp_index() * kRows * kStride * 4);
  const int g = lane_index() / 4, t = lane_index() % 4;
  wait_copies<0>();
  sync_block();
#pragma unroll
  for (int part = 0; part < C::kWarpM / kRows; ++part) {
#pragma unroll
    for (int m = 0; m < kRows / 16; ++m)
#pragma unroll
      for (int n = 0; n < C::kTilesN; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          mine[(m * 16 + e / 2 * 8 + g) * kStride + n * 8 + 2 * t + e % 2] = acc[part * kRows / 16 + m][n][e];
    sync_warp();
#pragma unroll 1
    for (int i = lane_index(); i < kRows * kRuns; i += kWarp) {
      const int row = i / kRuns, run = i % kRuns * kChunk<T>;
      const int pixel = m0 + C::first_m() + part * kRows + row, col = n0 + C::first_n() + run;
      if (pixel >= p.pixels || col >= p.n) continue;
      float v[kChunk<T>];
#pragma unroll
      for (int j = 0; j < kChunk<T>; ++j) v[j] = mine[row * kStride + run + j];
      finish<T>(p, Pixel(p, pixel), col, p.n - col < kChunk<T> ? p.n - col : kChunk<T>, v);
    }
    sync_warp();
  }
}

template <class T, int kN, F32 f32>
VA_KERNEL(kThreads, 2)
forward_kernel(const VA_PARAMETER Conv p) {
  constexpr int kChunks = kDepthBytes / 16, kStep = kThreads / kChunks;  // rows that are copied at once
  constexpr int kRowsA = kM / kStep, kRowsB = (kN + kStep - 1) / kStep;
  const int m0 = block_x() * kM, n0 = block_y() * kN;
  const int row = thread_index() / kChunks, column = thread_index() % kChunks;
  Patch<T> patches[kRowsA];
#pragma unroll
  for (int i = 0; i < kRowsA; ++i) patches[i].place(p, m0 + row + i * kStep);
  Tap tap(p, column * kChunk<T>);
  int k = column * kChunk<T>;
  const T* const weight = static_cast<const T*>(p.weight);
  const auto stage_a = [&](int s) { return DepthMajor<T>{shared_memory<T>(s * kStageBytes<kN>)}; };
  const auto stage_b = [&](int s) {
    return DepthMajor<T>{shared_memory<T>(s * kStageBytes<kN> + kM * kDepthBytes)};
  };
  float acc[Cut<kN>::kTilesM][Cut<kN>::kTilesN][4] = {};
  pipeline((p.k + kDepth<T> - 1) / kDepth<T>,
           [&](int s) {
#pragma unroll
             for (int i = 0; i < kRowsA; ++i) {
               const T* const x = k < p.k ? patches[i].at(p, tap) : nullptr;
               copy16_async(stage_a(s).chunk(row + i * kStep, column), x ? x : patches[i].image,
                            x != nullptr);
             }
#pragma unroll
             for (int i = 0; i < kRowsB; ++i) {
               if (kN % kStep != 0 && row + i * kStep >= kN) continue;
               const int n = n0 + row + i * kStep;
               const bool valid = k < p.k && n < p.n;
               copy16_async(stage_b(s).chunk(row + i * kStep, column),
                            valid ? weight + static_cast<int64_t>(n) * p.k + k : weight, valid);
             }
             k += kDepth<T>;
             tap.advance(p, kDepth<T>);
           },
           [&](int s) { multiply<T, kN, f32>(acc, stage_a(s), stage_b(s)); });
  finish_tile<T, kN>(p, acc, m0, n0);
}

// partial[split, n, k] = sum over the pixels of a part of dy[pixel, n] patch[pixel, k]
template <class T>
VA_KERNEL(kThreads, 2)
backward_weight_kernel(const VA_PARAMETER Conv p) {
  constexpr int kN = kM, kChunks = kM / kChunk<T>,
                kStep = kThreads / kChunks;  // pixels that are copied at once
  constexpr int kPixels = kDepth<T> / kStep;
  const int n0 = block_x() * kM, k0 = block_y() * kN, begin = block_z() * p.chunk;
  const int end = begin + p.chunk < p.pixels ? begin + p.chunk : p.pixels;
  const int depth = thread_index() / kChunks, column = thread_index() % kChunks;
  const int n = n0 + column * kChunk<T>, k = k0 + column * kChunk<T>;
  const Tap tap(p, k < p.k ? k : 0);
  int index = begin + depth;
  Pixel pixel(p, index < p.pixels ? index : 0);
  const auto stage_a = [&](int s) { return RowMajor<T, kM>{shared_memory<T>(s * kStageBytes<kN>)}; };
  const auto stage_b = [&](int s) {
    return RowMajor<T, kN>{shared_memory<T>(s * kStageBytes<kN> + kM * kDepthBytes)};
  };
  float acc[Cut<kN>::kTilesM][Cut<kN>::kTilesN][4] = {};
  pipeline((end - begin + kDepth<T> - 1) / kDepth<T>,
           [&](int s) {
#pragma unroll
             for (int i = 0; i < kPixels; ++i) {
               const T* const nothing = static_cast<const T*>(p.x.data);
               const T* const dy =
                   index < end && n < p.n ? p.y.at<const T>(pixel.batch, pixel.row, pixel.col) + n : nullptr;
               copy16_async(stage_a(s).chunk(depth + i * kStep, column), dy ? dy : nothing, dy != nullptr);
               const T* const x = index < end && k < p.k ? tap_source<T>(p, pixel, tap) : nullptr;
               copy16_async(stage_b(s).chunk(depth + i * kStep, column), x ? x : nothing, x != nullptr);
               index += kStep;
               if (index < end) pixel.advance(p, kStep);
             }
           },
           [&](int s) { multiply<T, kN, F32::tf32>(acc, stage_a(s), stage_b(s)); });
  wait_copies<0>();
  using C = Cut<kN>;
  const int g = lane_index() / 4, t = lane_index() % 4;
  float* const out = static_cast<float*>(p.partial) + static_cast<int64_t>(block_z()) * p.n * p.k;
#pragma unroll
  for (int m = 0; m < C::kTilesM; ++m)
#pragma unroll
    for (int j = 0; j < C::kTilesN; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int to_n = n0 + C::first_m() + m * 16 + half * 8 + g, to_k = k0 + C::first_n() + j * 8 + 2 * t;
        if (to_n >= p.n || to_k >= p.k) continue;
        float* const to = out + static_cast<int64_t>(to_n) * p.k + to_k;
        to[0] = acc[m][j][2 * half];
        to[1] = acc[m][j][2 * half + 1];
      }
}

unsigned blocks(int work, int size) { return static_cast<unsigned>((work + size - 1) / size); }

template <class T, int kN, F32 f32>
void run_forward(const Conv& p, Stream stream) {
  launch("conv2d", forward_kernel<T, kN, f32>, {blocks(p.pixels, kM), blocks(p.n, kN)}, kThreads,
         kStages * kStageBytes<kN>, stream, p);
}

}  // namespace

template <class T>
void forward_mma(const Conv& p, Stream stream) {
  if (p.n <= 16) return run_forward<T, 16, F32::exact>(p, stream);
  if (p.n <= 64) return run_forward<T, 64, F32::exact>(p, stream);
  run_forward<T, 128, F32::exact>(p, stream);
}

// The registers of three products hold a narrower tile.
template <>
void forward_mma<float>(const Conv& p, Stream stream) {
  if (p.tf32) {
    if (p.n <= 64) return run_forward<float, 64, F32::tf32>(p, stream);
    return run_forward<float, 128, F32::tf32>(p, stream);
  }
  if (p.n <= 16) return run_forward<float, 16, F32::exact>(p, stream);
  run_forward<float, 64, F32::exact>(p, stream);
}

template <class T>
void backward_weight_mma(const Conv& p, int splits, Stream stream) {
  launch("conv2d", backward_weight_kernel<T>,
         {blocks(p.n, kM), blocks(p.k, kM), static_cast<unsigned>(splits)}, kThreads,
         kStages * kStageBytes<kM>, stream, p);
}

template void forward_mma<Half>(const Conv&, Stream);
template void forward_mma<BFloat16>(const Conv&, Stream);
template void backward_weight_mma<Half>(const Conv&, int, Stream);
template void backward_weight_mma<BFloat16>(const Conv&, int, Stream);

}  // namespace va::conv
