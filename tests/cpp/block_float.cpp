// SPDX-License-Identifier: Apache-2.0
#include "kernels/block_float/block_float.h"

#include "tests/cpp/check.h"

namespace va::test {

TEST(block_float_matches) {
  for (const int64_t C : {1, 3, 40}) {
    const int64_t R = 3, W = 37;
    auto x = random<float>({R, W, C}, 20);
    x.data[1] = 1e-39f;
    for (int64_t w = 16; w < 32; ++w) x.data[static_cast<size_t>(w * C)] = 1e-34f;
    const BlockFloatRow row = block_float_row(W, C);
    CHECK(row.bytes % kBlockFloatAlignment == 0 && row.bytes >= 3 * 41 * C);
    Array<uint8_t> store({R * row.bytes}), again({R * row.bytes});
    const std::vector<int64_t> offsets{row.bytes, 0, 2 * row.bytes};
    pack_block_float({x.view, store.view, offsets}, 0);
    Array<float> y({R, W, C});
    unpack_block_float({y.view, store.view, offsets}, 0);
    std::vector<double> want;
    for (int64_t r = 0; r < R; ++r)
      for (int64_t w = 0; w < W; ++w)
        for (int64_t c = 0; c < C; ++c) {
          double largest = 0;
          for (int64_t p = w / 16 * 16; p < std::min(W, w / 16 * 16 + 16); ++p)
            largest = std::max(largest, std::fabs(x[(r * W + p) * C + c]));
          const int step = std::ilogb(largest) - 18;
          const double q = std::nearbyint(std::ldexp(x[(r * W + w) * C + c], -step));
          want.push_back(largest < 1e-32 ? 0 : std::ldexp(std::max(-524287.0, std::min(524287.0, q)), step));
        }
    check_close("block_float", y, want, 0);
    pack_block_float({y.view, again.view, offsets}, 0);
    CHECK(again.data == store.data);
  }
}

}  // namespace va::test
