// SPDX-License-Identifier: Apache-2.0
#include "kernels/patchify/patchify.h"

#include "tests/cpp/check.h"

namespace va::test {

TEST(patchify_matches) {
  for_floats([](auto t) {
    using T = decltype(t);
    const int64_t B = 3, C = 2, h = 6, w = 20, ph = 3, pw = 5;
    for (const bool channels_last : {false, true}) {
      auto x = random<T>({B, C, h, w});
      if (channels_last) {
        x.view.strides[1] = 1;
        x.view.strides[2] = w * C;
        x.view.strides[3] = C;
      }
      const int64_t* s = x.view.strides;
      Array<T> patches({B, (h / ph) * (w / pw), C * ph * pw});
      patchify({x.view, patches.view, ph, pw}, 0);
      std::vector<double> want;
      for (int64_t b = 0; b < B; ++b)
        for (int64_t i = 0; i < h; i += ph)
          for (int64_t j = 0; j < w; j += pw)
            for (int64_t c = 0; c < C; ++c)
              for (int64_t y = i; y < i + ph; ++y)
                for (int64_t k = j; k < j + pw; ++k)
                  want.push_back(x[b * s[0] + c * s[1] + y * s[2] + k * s[3]]);
      check_close("patches", patches, want, 0);
      Array<T> back({B, C, h, w});
      TensorView view = x.view;
      view.data = back.data.data();
      unpatchify({view, patches.view, ph, pw}, 0);
      check_close("image", back, x.values(), 0);
    }
  });
}

}  // namespace va::test
