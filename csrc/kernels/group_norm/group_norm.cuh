// SPDX-License-Identifier: Apache-2.0
// What the passes over a channels-last image share. One block per part of an image (group_norm.h says how
// images are cut), each thread on its own channels; parts are summed in a fixed order, without atomics, so
// that an image's bits do not depend on the batch.
#pragma once
#include <string>

#include "core/dispatch.h"
#include "kernels/common/activation_math.cuh"
#include "kernels/common/vectors.cuh"
#include "kernels/group_norm/group_norm.h"

namespace va::group_norm {

using namespace simt;

constexpr int kThreads = 256;
constexpr int kJoinThreads = 512, kJoinWarps = kJoinThreads / kWarp;  // where parts are summed
constexpr int kMaxSharedBytes = 96 * 1024;

struct Image {
  int64_t pixels, parts, rows;  // rows: pixels of one part
  int channels, groups;
};
struct Part {
  int64_t image, begin, end;  // pixels [begin, end)
};
VA_DEVICE Part part_of(const Image& m, int64_t index) {
  const int64_t begin = index % m.parts * m.rows, end = begin + m.rows;
  return {index / m.parts, begin < m.pixels ? begin : m.pixels, end < m.pixels ? end : m.pixels};
}

// Which channels and pixels of a part belong to this thread: of every row `width` runs of kV channels are
// read side by side, `lanes` rows at once.
template <int kV>
struct Share {
  int width, lanes;
  VA_DEVICE explicit Share(const Image& m) : width(width_of(m.channels)), lanes(kThreads / width) {}
  static constexpr int width_of(int channels) {
    return channels / kV < kThreads ? (channels / kV > 0 ? channels / kV : 1) : kThreads;
  }
  static int lanes_of(int channels) { return kThreads / width_of(channels); }
  VA_DEVICE int lane() const { return thread_index() / width; }

  // begin_run(first channel), then on_row(row) for this thread's rows, then end_run(first channel).
  template <class Begin, class Row, class End>
  VA_DEVICE void each(const Image& m, const Part& part, Begin&& begin_run, Row&& on_row,
                      End&& end_run) const {
    if (lane() >= lanes) return;
    for (int c = thread_index() % width * kV; c < m.channels; c += width * kV) {
      begin_run(c);
      for (int64_t row = part.begin + lane(); row < part.end; row += lanes) on_row(row, c);
      end_run(c);
    }
  }
};

// totals[c] += totals[lane * count + c] for the other lanes, in order.
template <class C>
VA_DEVICE void add_lanes(Shared<C> totals, int lanes, int count) {
  sync_block();
  for (int c = thread_index(); c < count; c += kThreads) {
    C total = totals[c];
    for (int lane = 1; lane < lanes; ++lane) total += totals[lane * count + c];
    totals[c] = total;
  }
  sync_block();
}

// The sum over all warps of what each lane has, in every thread.
template <class C>
VA_DEVICE C sum_of_warps(C x, Shared<C> scratch) {
  scratch[thread_index()] = x;
  sync_block();
  C total = 0;
  for (int w = 0; w < kJoinWarps; ++w) total += scratch[w * kWarp + lane_index()];
  sync_block();
  return total;
}

// What normalises the channels [c, c + kV) of one image.
template <class Y, class C, int kV>
struct Channels {
  C mean[kV], rstd[kV], weight[kV], bias[kV];

  VA_DEVICE void load(const Image& m, const C* means, const C* variances, const Y* weights, const Y* biases,
                      int64_t image, int c, C eps) {
    const int size = m.channels / m.groups;
#pragma unroll
    for (int i = 0; i < kV; ++i) {
      const int64_t g = image * m.groups + (c + i) / size;
      mean[i] = means[g];
      rstd[i] = rsqrt_of(variances[g] + eps);
    }
    load_values(weight, weights + c);
    load_values(bias, biases + c);
  }
};

inline Image image_of(const TensorView& x, const TensorView& mean) {
  const int64_t pixels = x.sizes[1], channels = x.sizes[2], parts = group_norm_parts(pixels, channels);
  const int64_t most = kMaxSharedBytes / (2 * size_of(mean.dtype)) - 2 * kThreads;
  if (channels > most)
    fail("group_norm: at most " + std::to_string(most) + " channels on a GPU, got " +
         std::to_string(channels));
  if (x.sizes[0] * parts > INT32_MAX) fail("group_norm: the images are too large for one call on a GPU");
  return {pixels, parts, (pixels + parts - 1) / parts, static_cast<int>(channels),
          static_cast<int>(mean.sizes[1])};
}

inline unsigned grid(int64_t blocks) { return static_cast<unsigned>(blocks); }

// f(X tag, Y tag, elements per access as a constant)
template <class F>
void dispatch_types(const TensorView& x, const TensorView& y, bool aligned, F&& f) {
  dispatch_float(y.dtype, "group_norm: y", [&](auto t) {
    using Y = typename decltype(t)::type;
    dispatch_vector<Y>(aligned && x.sizes[2] % Pack<Y>::kSize == 0, [&](auto size) {
      if (x.dtype == y.dtype)
        f(t, t, size);
      else
        f(TypeTag<compute_t<Y>>{}, t, size);
    });
  });
}

}  // namespace va::group_norm
