// SPDX-License-Identifier: Apache-2.0
#include "kernels/resample/resample.h"

#include "tests/cpp/check.h"

namespace va::test {
namespace {

double bicubic(double x) {
  x = std::fabs(x);
  const double a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}
double bilinear(double x) { return std::max(0.0, 1 - std::fabs(x)); }

// One pass along an axis of `size` values that lie `stride` apart; 22 fractional bits, rounded to uint8.
std::vector<uint8_t> line(const uint8_t* in, int64_t size, int64_t stride, int64_t out_size, Filter filter) {
  const bool cubic = filter == Filter::bicubic;
  const double step = static_cast<double>(size) / static_cast<double>(out_size),
               stretch = std::max(1.0, step);
  const double support = (cubic ? 2 : 1) * stretch;
  std::vector<uint8_t> out;
  for (int64_t i = 0; i < out_size; ++i) {
    const double center = (static_cast<double>(i) + 0.5) * step;
    const auto first = std::max<int64_t>(0, static_cast<int64_t>(center - support + 0.5));
    const auto last = std::min(size, static_cast<int64_t>(center + support + 0.5));
    std::vector<double> weights;
    double total = 0;
    for (int64_t j = first; j < last; ++j) {
      const double x = (static_cast<double>(j) - center + 0.5) * (1 / stretch);
      weights.push_back(cubic ? bicubic(x) : bilinear(x));
      total += weights.back();
    }
    int64_t sum = 1 << 21;
    for (int64_t j = first; j < last; ++j) {
      const double w = weights[static_cast<size_t>(j - first)] / total * (1 << 22);
      sum += static_cast<int64_t>(w < 0 ? w - 0.5 : w + 0.5) * in[j * stride];
    }
    out.push_back(static_cast<uint8_t>(std::min<int64_t>(255, std::max<int64_t>(0, sum >> 22))));
  }
  return out;
}

void run(int64_t h, int64_t w, int64_t C, int64_t height, int64_t width, Filter filter) {
  std::mt19937 generator(2);
  Array<uint8_t> image({h, w, C}), rows({h, width, C}), want({height, width, C}), got({height, width, C});
  for (uint8_t& x : image.data) x = static_cast<uint8_t>(generator());
  for (int64_t y = 0; y < h; ++y) {
    for (int64_t c = 0; c < C; ++c) {
      const auto out = line(&image.data[static_cast<size_t>(y * w * C + c)], w, C, width, filter);
      for (int64_t x = 0; x < width; ++x)
        rows.data[static_cast<size_t>((y * width + x) * C + c)] = out[static_cast<size_t>(x)];
    }
  }
  for (int64_t x = 0; x < width * C; ++x) {
    const auto out = line(&rows.data[static_cast<size_t>(x)], h, width * C, height, filter);
    for (int64_t y = 0; y < height; ++y)
      want.data[static_cast<size_t>(y * width * C + x)] = out[static_cast<size_t>(y)];
  }
  Resample args{};
  args.image = image.view;
  args.out = got.view;
  args.filter = filter;
  args.height = height;
  args.width = width;
  args.box[2] = static_cast<float>(w);
  args.box[3] = static_cast<float>(h);
  Array<uint8_t> workspace({resample_workspace(args)});
  args.workspace = workspace.view;
  resample(args, 0);
  CHECK(got.data == want.data);
}

}  // namespace

TEST(resample_is_bit_exact) {
  for (const auto filter : {Filter::bilinear, Filter::bicubic}) {
    for (const int64_t channels : {1, 3, 4}) {
      run(61, 97, channels, 24, 40, filter);  // smaller
      run(13, 9, channels, 40, 33, filter);   // larger
      run(50, 20, channels, 20, 50, filter);
    }
  }
}

}  // namespace va::test
