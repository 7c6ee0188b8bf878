// SPDX-License-Identifier: Apache-2.0
// The two passes of Pillow's resize on the GPU. Integer arithmetic with the host's weights: the same bits as
// on the CPU.
#include "kernels/resample/resample.h"

#include <algorithm>

#include "kernels/common/simt.cuh"

namespace va {
namespace {

using namespace simt;

constexpr int kThreads = 128;
constexpr int kRows = 4;  // of the horizontal pass, a thread: they share the weights
constexpr int kPrecisionBits = 22;
constexpr uint32_t kHalf = 1u << (kPrecisionBits - 1);
constexpr int64_t kMostShared = 46 * 1024;

struct Axis {
  const int32_t *first, *taps, *weights;
  int count, max_pairs;
};

// Tables that the host made, as a kernel's argument: a CUDA graph keeps that, and the host's memory may go.
struct Words {
  static constexpr int kMost = 4000;  // an argument may be 32 KB
  int32_t v[kMost];
};
VA_KERNEL(kThreads)
copy_words_kernel(const VA_PARAMETER Words words, int32_t* to, int count) {
  const int i = block_x() * kThreads + thread_index();
  if (i < count) to[i] = words.v[i];
}

void copy_to_device(uint8_t* to, const uint8_t* from, int64_t bytes, Stream stream) {
  Words words;
  constexpr int64_t kMostBytes = sizeof(words.v);
  for (int64_t at = 0; at < bytes; at += kMostBytes) {
    const int64_t n = std::min(bytes - at, kMostBytes);
    std::memcpy(words.v, from + at, static_cast<size_t>(n));
    const int count = static_cast<int>(n / 4);
    launch("resample", copy_words_kernel, {static_cast<unsigned>((count + kThreads - 1) / kThreads)},
           kThreads, 0, stream, words, reinterpret_cast<int32_t*>(to + at), count);
  }
}

// Pixels of a row lie `pixel` bytes apart, their channels side by side.
struct Source {
  const uint8_t* data;
  int64_t pitch;
  int pixel;
};
struct Target {
  uint8_t* bytes;  // either bytes
  float* values;   // or table[channel * 256 + byte]
  const float* table;
  int64_t row, pixel, channel;  // strides
  VA_DEVICE void write(int64_t y, int64_t x, int c, uint32_t sum) const {
    const int32_t rounded = static_cast<int32_t>(sum) >> kPrecisionBits;
    const int byte = rounded < 0 ? 0 : (rounded > 255 ? 255 : rounded);
    const int64_t at = y * row + x * pixel + c * channel;
    if (values) {
      values[at] = table[c * 256 + byte];
    } else {
      bytes[at] = static_cast<uint8_t>(byte);
    }
  }
};

// f(source position, weight) for the taps of output position i; weights and sums are modulo 2^32.
template <class F>
VA_DEVICE void for_taps(const Axis& axis, int i, F&& f) {
  const auto weight = [](int32_t low, int32_t high) {  // both signed 16-bit parts: see ResampleAxis
    return static_cast<uint32_t>(static_cast<int16_t>(low)) + (static_cast<uint32_t>(high) << 16);
  };
  const int first = axis.first[i], taps = axis.taps[i];
  const int32_t* pair = axis.weights + static_cast<int64_t>(i) * axis.max_pairs * 2;
  for (int t = 0; t < taps; t += 2, pair += 2) {
    f(first + t, weight(pair[0], pair[1]));
    if (t + 1 < taps) f(first + t + 1, weight(pair[0] >> 16, pair[1] >> 16));
  }
}

// Rows first_row .. first_row + rows - 1 of the source, filtered along the row, become rows 0 .. of the
// target. A block makes kThreads columns of kRows rows; with kStaged their source, at most tile_pitch bytes a
// row, comes through shared memory.
template <int kChannels, bool kStaged>
VA_KERNEL(kThreads)
horizontal_kernel(Source source, Axis axis, Target to, int first_row, int rows, int tile_pitch) {
  const int blocks = (axis.count + kThreads - 1) / kThreads;
  const int begin = block_x() % blocks * kThreads,
            end = begin + kThreads < axis.count ? begin + kThreads : axis.count;
  const int row0 = block_x() / blocks * kRows, here = rows - row0 < kRows ? rows - row0 : kRows;
  const uint8_t* const data = source.data + (static_cast<int64_t>(first_row) + row0) * source.pitch;
  const Shared<uint8_t> tile = shared_memory<uint8_t>(0);
  int lowest = 0;
  if constexpr (kStaged) {
    const int a = axis.first[begin], b = axis.first[end - 1];  // a mirrored axis runs backwards
    const int last_a = a + axis.taps[begin], last_b = b + axis.taps[end - 1];
    lowest = a < b ? a : b;
    const int bytes = ((last_a > last_b ? last_a : last_b) - lowest - 1) * source.pixel + kChannels;
    for (int k = 0; k < here; ++k) {
      const uint8_t* const line = data + k * source.pitch + static_cast<int64_t>(lowest) * source.pixel;
      for (int i = thread_index(); i < bytes; i += kThreads) tile[k * tile_pitch + i] = line[i];
    }
    sync_block();
  }
  const int x = begin + thread_index();
  if (x >= end) return;
  uint32_t sum[kRows][kChannels];
#pragma unroll
  for (int k = 0; k < kRows; ++k)
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sum[k][c] = kHalf;
  for_taps(axis, x, [&](int at, uint32_t weight) {
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      if (k >= here) break;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const int i = (at - lowest) * source.pixel + c;
        const uint8_t byte = kStaged ? uint8_t(tile[k * tile_pitch + i]) : data[k * source.pitch + i];
        sum[k][c] += weight * byte;
      }
    }
  });
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    if (k >= here) break;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) to.write(row0 + k, x, c, sum[k][c]);
  }
}

// Filters along columns; row 0 of the source is first_row of the axis. A block makes kThreads pixels of a
// row.
template <int kChannels>
VA_KERNEL(kThreads)
vertical_kernel(Source source, Axis axis, Target to, int first_row, int width) {
  const int blocks = (width + kThreads - 1) / kThreads;
  const int y = block_x() / blocks, x = block_x() % blocks * kThreads + thread_index();
  if (x >= width) return;
  uint32_t sum[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) sum[c] = kHalf;
  for_taps(axis, y, [&](int at, uint32_t weight) {
    const uint8_t* const p =
        source.data + (at - first_row) * source.pitch + static_cast<int64_t>(x) * source.pixel;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sum[c] += weight * p[c];
  });
#pragma unroll
  for (int c = 0; c < kChannels; ++c) to.write(y, x, c, sum[c]);
}

// What one pass hands to the other: [rows, columns, channels], at most plan.pass_bytes.
struct Between {
  int64_t first_row, rows, columns;
};
Between between(const Resample& a, const ResamplePlan& p) {
  if (a.vertical_first) return {0, p.y.count, p.end - p.begin};
  const int64_t first = p.y.first[0], last = p.y.first[p.y.count - 1] + p.y.taps[p.y.count - 1];
  return {first, last - first, p.x.count};
}

Axis on_device(const ResampleAxis& axis, const uint8_t* host, uint8_t* device) {
  const auto moved = [&](const int32_t* p) {
    return reinterpret_cast<const int32_t*>(device + (reinterpret_cast<const uint8_t*>(p) - host));
  };
  return {moved(axis.first), moved(axis.taps), moved(axis.weights), static_cast<int>(axis.count),
          static_cast<int>(axis.max_pairs)};
}

// The most bytes of a source row that a block of the horizontal pass needs.
int64_t tile_bytes(const ResampleAxis& x, int pixel) {
  int64_t most = 0;
  for (int64_t begin = 0; begin < x.count; begin += kThreads) {
    const int64_t last = std::min(begin + kThreads, x.count) - 1;
    const int64_t lowest = std::min(x.first[begin], x.first[last]);
    most = std::max(most, std::max(x.first[begin] + x.taps[begin], x.first[last] + x.taps[last]) - lowest);
  }
  return (most * pixel + 15) / 16 * 16;
}

unsigned grid(int64_t rows, int64_t columns) {
  const int64_t blocks = rows * ((columns + kThreads - 1) / kThreads);
  check(blocks < int64_t{1} << 31, "resample: the image is too large for the GPU kernel");
  return static_cast<unsigned>(blocks);
}

template <int kChannels>
void run(const Resample& a, const ResamplePlan& p, Axis x, Axis y, uint8_t* memory, Stream stream) {
  const Between m = between(a, p);
  const int pixel = static_cast<int>(p.pixel);
  const Source image{a.image.ptr<const uint8_t>(), a.image.strides[0], pixel};
  const Target middle{memory, nullptr, nullptr, m.columns * kChannels, kChannels, 1};
  Target out{nullptr, nullptr, nullptr, 0, 0, 0};
  (a.out.dtype == DType::u8 ? static_cast<void>(out.bytes = a.out.ptr<uint8_t>())
                            : static_cast<void>(out.values = a.out.ptr<float>()));
  if (out.values) out.table = a.table.ptr<const float>();
  out.row = a.planar ? a.out.strides[1] : a.out.strides[0];
  out.pixel = a.planar ? 1 : kChannels;
  out.channel = a.planar ? a.out.strides[0] : 1;

  const auto horizontal = [&](const Source& from, const Target& to, int64_t first_row, int64_t rows) {
    const int64_t pitch = tile_bytes(p.x, from.pixel), bytes = pitch * kRows;
    const bool staged = bytes <= kMostShared;
    launch("resample", staged ? horizontal_kernel<kChannels, true> : horizontal_kernel<kChannels, false>,
           {grid((rows + kRows - 1) / kRows, x.count)}, kThreads, staged ? static_cast<int>(bytes) : 0,
           stream, from, x, to, static_cast<int>(first_row), static_cast<int>(rows),
           static_cast<int>(staged ? pitch : 0));
  };
  const auto vertical = [&](const Source& from, const Target& to, int64_t first_row, int64_t width) {
    launch("resample", vertical_kernel<kChannels>, {grid(y.count, width)}, kThreads, 0, stream, from, y, to,
           static_cast<int>(first_row), static_cast<int>(width));
  };
  if (a.vertical_first) {
    vertical({image.data + p.begin * pixel, image.pitch, pixel}, middle, 0, m.columns);
    // The columns before p.begin are not there.
    horizontal({memory - p.begin * kChannels, middle.row, kChannels}, out, 0, m.rows);
  } else {
    horizontal(image, middle, m.first_row, m.rows);
    vertical({memory, middle.row, kChannels}, out, m.first_row, m.columns);
  }
}

}  // namespace

void cuda::resample(const Resample& a, const ResamplePlan& p, const uint8_t* tables, int64_t table_bytes,
                    Stream stream) {
  uint8_t* const memory = a.workspace.ptr<uint8_t>();
  copy_to_device(memory, tables, reinterpret_cast<const uint8_t*>(p.values) - tables, stream);
  const Axis x = on_device(p.x, tables, memory), y = on_device(p.y, tables, memory);
  const auto go = [&](auto channels) { run<channels()>(a, p, x, y, memory + table_bytes, stream); };
  switch (a.planar ? a.out.sizes[0] : a.out.sizes[2]) {
    case 1:
      return go(std::integral_constant<int, 1>{});
    case 2:
      return go(std::integral_constant<int, 2>{});
    case 3:
      return go(std::integral_constant<int, 3>{});
    default:
      return go(std::integral_constant<int, 4>{});
  }
}

}  // namespace va
