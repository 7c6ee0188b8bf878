// SPDX-License-Identifier: Apache-2.0
#include "kernels/block_float/block_float.h"

#include <algorithm>
#include <cstdlib>

#include "core/dispatch.h"

namespace va {
namespace {

[[noreturn]] void fail_got(const std::string& message, int64_t got) {
  fail(message + ", got " + std::to_string(got));
}

void check_offsets(const std::string& op, const BlockFloat& a, int64_t bytes, bool written) {
  const int64_t rows = a.rows.sizes[0], size = a.store.sizes[0];
  const auto count = static_cast<int64_t>(a.offsets.size());
  if (count != rows) {
    fail_got(op + ": offsets must be " + std::to_string(rows) + ", one for each row", count);
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = a.offsets[i];
    if (at < 0 || at % kBlockFloatAlignment != 0) {
      fail_got(op + ": offsets[" + std::to_string(i) + "] must be a multiple of 64, from 0 on", at);
    }
    if (bytes > size || at > size - bytes) {
      fail_got(op + ": a row takes " + std::to_string(bytes) + " bytes and store has " +
                   std::to_string(size) + "; offsets[" + std::to_string(i) + "] must leave room for it",
               at);
    }
  }
  if (!written) return;
  std::vector<int64_t> sorted = a.offsets;
  std::sort(sorted.begin(), sorted.end());
  for (int64_t i = 1; i < count; ++i) {
    if (sorted[i] - sorted[i - 1] < bytes) {
      fail_got(op + ": offsets must be at least " + std::to_string(bytes) + " bytes apart",
               sorted[i] - sorted[i - 1]);
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
bool checked(const std::string& op, const char* name, const BlockFloat& a, bool packs, BlockFloatRow& row) {
  const std::string rows = op + ": " + name, store = op + ": store";
  const auto [count, width, channels] = a.rows.shape<3>(rows.c_str());
  check_dtype(a.rows, rows.c_str(), {DType::f32});
  (void)a.store.shape<1>(store.c_str());
  check_dtype(a.store, store.c_str(), {DType::u8});
  check_device(a.store, store.c_str(), a.rows);
  check_contiguous(a.store, store.c_str());
  if (channels < 1) fail_got(rows + " must have at least 1 channel", channels);
  row = block_float_row(width, channels);
  const bool empty = count == 0 || width == 0;
  check_offsets(op, a, row.bytes, packs && !empty);
  if (empty) return false;
  if (channels > 1 && a.rows.strides[2] != 1) {
    fail_got(rows + " must have a contiguous last axis, of stride 1", a.rows.strides[2]);
  }
  if (!packs && !is_apart(a.rows)) fail(rows + " must not overlap itself");
  if (reinterpret_cast<uintptr_t>(a.store.data) % 16 != 0)
    fail(store + " must begin at a multiple of 16 bytes");
  return true;
}

}  // namespace

BlockFloatRow block_float_row(int64_t width, int64_t channels) {
  if (width < 0) fail_got("block_float: width must not be negative", width);
  if (channels < 1) fail_got("block_float: channels must be at least 1", channels);
  const int64_t blocks = width / kBlockFloatPixels + (width % kBlockFloatPixels != 0);
  constexpr int64_t kLimit = int64_t{1} << 56;  // 41 times that can be counted
  if (blocks > 0 && channels > kLimit / blocks) {
    fail_got("block_float: width and channels are too large", width);
  }
  const int64_t values = blocks * channels, exponents = values * kBlockFloatWords * 4;
  const int64_t end = exponents + values;
  return {blocks, exponents, (end + kBlockFloatAlignment - 1) / kBlockFloatAlignment * kBlockFloatAlignment};
}

void pack_block_float(const BlockFloat& a, Stream stream) {
  BlockFloatRow row;
  if (!checked("pack_block_float", "x", a, true, row)) return;
  dispatch_device(
      a.rows.device, "pack_block_float",
      [&](auto isa) { cpu::pack_block_float<isa()>(a, row, a.offsets.data()); },
      [&] { cuda::pack_block_float(a, row, stream); });
}

void unpack_block_float(const BlockFloat& a, Stream stream) {
  BlockFloatRow row;
  if (!checked("unpack_block_float", "out", a, false, row)) return;
  dispatch_device(
      a.rows.device, "unpack_block_float",
      [&](auto isa) { cpu::unpack_block_float<isa()>(a, row, a.offsets.data()); },
      [&] { cuda::unpack_block_float(a, row, stream); });
}

}  // namespace va
