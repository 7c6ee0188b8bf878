// SPDX-License-Identifier: Apache-2.0
#include "kernels/block_float/block_float.h"

#include <algorithm>
#include <cstdlib>

#include "core/dispatch.h"

namespace va {
namespace {

std::string text(const char* op, const char* rest, int64_t got) {
  return std::string(op) + ": " + rest + ", got " + std::to_string(got);
}

void check_offsets(const char* op, const BlockFloat& a, const BlockFloatRow& row, bool written) {
  const int64_t rows = a.rows.sizes[0], size = a.store.sizes[0];
  if (static_cast<int64_t>(a.offsets.size()) != rows) {
    fail(text(op, ("offsets must be " + std::to_string(rows) + ", one for each row").c_str(),
              static_cast<int64_t>(a.offsets.size())));
  }
  for (size_t i = 0; i < a.offsets.size(); ++i) {
    const int64_t at = a.offsets[i];
    if (at < 0 || at % kBlockFloatAlignment != 0) {
      fail(text(op, ("offsets[" + std::to_string(i) + "] must be a multiple of 64, from 0 on").c_str(), at));
    }
    if (row.bytes > size || at > size - row.bytes) {
      fail(text(op,
                ("a row takes " + std::to_string(row.bytes) + " bytes and store has " + std::to_string(size) +
                 "; offsets[" + std::to_string(i) + "] must leave room for it")
                    .c_str(),
                at));
    }
  }
  if (!written) return;
  std::vector<int64_t> sorted = a.offsets;
  std::sort(sorted.begin(), sorted.end());
  for (size_t i = 1; i < sorted.size(); ++i) {
    if (sorted[i] - sorted[i - 1] < row.bytes) {
      fail(text(op, ("offsets must be at least " + std::to_string(row.bytes) + " bytes apart").c_str(),
                sorted[i] - sorted[i - 1]));
    }
  }
}

// Whether no two pixels share memory: one of the two strides must step over all that the other reaches.
bool is_apart(const TensorView& x) {
  const int64_t rows = x.sizes[0], width = x.sizes[1], channels = x.sizes[2];
  const int64_t row = rows > 1 ? std::abs(x.strides[0]) : INT64_MAX;
  const int64_t pixel = width > 1 ? std::abs(x.strides[1]) : INT64_MAX;
  const int64_t inner = std::min(row, pixel), count = row < pixel ? rows : width;
  return inner >= channels &&
         (std::max(row, pixel) == INT64_MAX || std::max(row, pixel) >= inner * (count - 1) + channels);
}

// Returns false where there is nothing to do.
bool checked(const char* op, const char* name, const BlockFloat& a, bool packs, BlockFloatRow& row) {
  const std::string rows = std::string(op) + ": " + name, store = std::string(op) + ": store";
  const auto [count, width, channels] = a.rows.shape<3>(rows.c_str());
  check_dtype(a.rows, rows.c_str(), {DType::f32});
  (void)a.store.shape<1>(store.c_str());
  check_dtype(a.store, store.c_str(), {DType::u8});
  check_device(a.store, store.c_str(), a.rows);
  check_contiguous(a.store, store.c_str());
  if (channels < 1) fail(text(op, (std::string(name) + " must have at least 1 channel").c_str(), channels));
  row = block_float_row(width, channels);
  const bool empty = count == 0 || width == 0;
  if (!empty && channels > 1 && a.rows.strides[2] != 1) {
    fail(text(op, ("the last axis of " + std::string(name) + " must be contiguous").c_str(),
              a.rows.strides[2]) +
         " as its stride");
  }
  if (!packs && !empty && !is_apart(a.rows)) fail(rows + " must not overlap itself");
  check_offsets(op, a, row, packs && !empty);
  if (!empty && reinterpret_cast<uintptr_t>(a.store.data) % 16 != 0) {
    fail(store + " must begin at a multiple of 16 bytes");
  }
  return !empty;
}

}  // namespace

BlockFloatRow block_float_row(int64_t width, int64_t channels) {
  if (width < 0) fail(text("block_float", "width must not be negative", width));
  if (channels < 1) fail(text("block_float", "channels must be at least 1", channels));
  const int64_t blocks = width / kBlockFloatPixels + (width % kBlockFloatPixels != 0);
  constexpr int64_t kLimit = int64_t{1} << 56;  // 41 times that can be counted
  if (blocks > 0 && channels > kLimit / blocks) {
    fail(text("block_float", "width and channels are too large", width));
  }
  const int64_t values = blocks * channels, exponents = values * kBlockFloatWords * 4;
  const int64_t end = exponents + values;
  return {blocks, exponents, (end + kBlockFloatAlignment - 1) / kBlockFloatAlignment * kBlockFloatAlignment};
}

void pack_block_float(const BlockFloat& a, Stream stream) {
  BlockFloatRow row;
  if (!checked("pack_block_float", "x", a, true, row)) return;
  dispatch_device(
      a.rows.device, "pack_block_float", [&](auto isa) { cpu::pack_block_float<isa()>(a, row); },
      [&] { cuda::pack_block_float(a, row, stream); });
}

void unpack_block_float(const BlockFloat& a, Stream stream) {
  BlockFloatRow row;
  if (!checked("unpack_block_float", "out", a, false, row)) return;
  dispatch_device(
      a.rows.device, "unpack_block_float", [&](auto isa) { cpu::unpack_block_float<isa()>(a, row); },
      [&] { cuda::unpack_block_float(a, row, stream); });
}

}  // namespace va
