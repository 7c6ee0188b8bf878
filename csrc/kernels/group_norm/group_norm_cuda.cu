// SPDX-License-Identifier: Apache-2.0
#include "kernels/group_norm/group_norm.h"

#include "kernels/group_norm/group_norm.cuh"

namespace va {
namespace {

using namespace group_norm;

// Mean and squared deviations of a part: sums of the values, then of the squares around the mean.
template <class T, int kV>
VA_KERNEL(kThreads)
statistics_kernel(Image m, const T* x, compute_t<T>* work) {
  using C = compute_t<T>;
  const Share<kV> share(m);
  const Shared<C> sums = shared_memory<C>(0);                 // [lanes, channels]
  const Shared<C> centres = sums + share.lanes * m.channels;  // [groups]
  const Part part = part_of(m, block_x());
  const int size = m.channels / m.groups;
  const C count = static_cast<C>((part.end - part.begin) * size);
  C* const out = work + static_cast<int64_t>(block_x()) * 2 * m.groups;
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    C total[kV], centre[kV];
    share.each(
        m, part,
        [&](int c) {
#pragma unroll
          for (int i = 0; i < kV; ++i) {
            total[i] = 0;
            centre[i] = which == 0 ? C(0) : C(centres[(c + i) / size]);
          }
        },
        [&](int64_t row, int c) {
          C v[kV];
          load_values(v, x + (part.image * m.pixels + row) * m.channels + c);
#pragma unroll
          for (int i = 0; i < kV; ++i)
            total[i] += which == 0 ? v[i] : (v[i] - centre[i]) * (v[i] - centre[i]);
        },
        [&](int c) {
#pragma unroll
          for (int i = 0; i < kV; ++i) sums[share.lane() * m.channels + c + i] = total[i];
        });
    add_lanes(sums, share.lanes, m.channels);
    for (int g = thread_index(); g < m.groups; g += kThreads) {
      C sum = 0;
      for (int c = g * size; c < (g + 1) * size; ++c) sum += sums[c];
      if (which == 0) {
        const C mean = count > 0 ? sum / count : C(0);
        centres[g] = mean;
        out[g] = mean;
      } else {
        out[m.groups + g] = sum;
      }
    }
    sync_block();
  }
}

// Statistics of an image from those of its parts, in f64; a lane has a group, the warps share the parts.
template <class C>
VA_KERNEL(kJoinThreads)
join_statistics_kernel(Image m, const C* work, C* mean, C* variance) {
  const Shared<double> scratch = shared_memory<double>(0);
  const int chunks = (m.groups + kWarp - 1) / kWarp;
  const int64_t image = block_x() / chunks;
  const int g = block_x() % chunks * kWarp + lane_index();
  const int size = m.channels / m.groups;
  const auto all = static_cast<double>(m.pixels * size);
  const auto each = [&](auto&& f) {
    for (int64_t i = warp_index(); i < m.parts && g < m.groups; i += kJoinWarps) {
      const Part part = part_of(m, i);
      const C* const stats = work + (image * m.parts + i) * 2 * m.groups + g;
      f(static_cast<double>((part.end - part.begin) * size), static_cast<double>(stats[0]),
        static_cast<double>(stats[m.groups]));
    }
  };
  double total = 0, squares = 0;
  each([&](double count, double part_mean, double) { total += count * part_mean; });
  const double centre = sum_of_warps(total, scratch) / all;
  each([&](double count, double part_mean, double part_squares) {
    squares += part_squares + count * (part_mean - centre) * (part_mean - centre);
  });
  squares = sum_of_warps(squares, scratch);
  if (warp_index() == 0 && g < m.groups) {
    mean[image * m.groups + g] = static_cast<C>(centre);
    variance[image * m.groups + g] = static_cast<C>(squares / all);
  }
}

// X is the storage type of x, Y that of y and the parameters.
template <class X, class Y>
struct ForwardParams {
  using C = compute_t<X>;
  Image m;
  const X* x;
  const C *mean, *variance;
  const Y *weight, *bias;
  Y* y;
  C eps;
  Activation activation;
};

template <class X, class Y, int kV>
VA_KERNEL(kThreads)
forward_kernel(ForwardParams<X, Y> p) {
  using C = compute_t<X>;
  const Part part = part_of(p.m, block_x());
  Channels<Y, C, kV> ch;
  Share<kV>(p.m).each(
      p.m, part,
      [&](int c) {
        ch.load(p.m, p.mean, p.variance, p.weight, p.bias, part.image, c, p.eps);
#pragma unroll
        for (int i = 0; i < kV; ++i) ch.weight[i] *= ch.rstd[i];
      },
      [&](int64_t row, int c) {
        const int64_t at = (part.image * p.m.pixels + row) * p.m.channels + c;
        C v[kV];
        load_values(v, p.x + at);
#pragma unroll
        for (int i = 0; i < kV; ++i) v[i] = (v[i] - ch.mean[i]) * ch.weight[i] + ch.bias[i];
        gpu::activate<sizeof(Y) == 2>(p.activation, v);
        store_values(p.y + at, v);
      },
      [](int) {});
}

}  // namespace

void cuda::group_norm_statistics(const GroupNormStatistics& a, Stream stream) {
  const Image m = image_of(a.x, a.mean);
  const int64_t batch = a.x.sizes[0];
  dispatch_types(a.x, a.x, aligned16(a.x), [&](auto t, auto, auto size) {
    using T = typename decltype(t)::type;
    using C = compute_t<T>;
    const int shared = Share<size()>::lanes_of(m.channels) * m.channels + m.groups;
    launch("group_norm", statistics_kernel<T, size()>, {grid(batch * m.parts)}, kThreads,
           shared * static_cast<int>(sizeof(C)), stream, m, a.x.ptr<const T>(), a.workspace.ptr<C>());
    const int64_t chunks = (m.groups + kWarp - 1) / kWarp;
    launch("group_norm", join_statistics_kernel<C>, {grid(batch * chunks)}, kJoinThreads,
           kJoinThreads * static_cast<int>(sizeof(double)), stream, m, a.workspace.ptr<const C>(),
           a.mean.ptr<C>(), a.variance.ptr<C>());
  });
}

void cuda::group_norm_forward(const GroupNormForward& a, Stream stream) {
  const Image m = image_of(a.x, a.mean);
  const bool aligned = aligned16(a.x) && aligned16(a.y) && aligned16(a.weight) && aligned16(a.bias);
  dispatch_types(a.x, a.y, aligned, [&](auto tx, auto ty, auto size) {
    using X = typename decltype(tx)::type;
    using Y = typename decltype(ty)::type;
    using C = compute_t<X>;
    const ForwardParams<X, Y> p{m,
                                a.x.ptr<const X>(),
                                a.mean.ptr<const C>(),
                                a.variance.ptr<const C>(),
                                a.weight.ptr<const Y>(),
                                a.bias.ptr<const Y>(),
                                a.y.ptr<Y>(),
                                static_cast<C>(a.eps),
                                a.activation};
    launch("group_norm", forward_kernel<X, Y, size()>, {grid(a.x.sizes[0] * m.parts)}, kThreads, 0, stream,
           p);
  });
}

}  // namespace va
