// SPDX-License-Identifier: Apache-2.0
#include "kernels/group_norm/group_norm.cuh"

namespace va {
namespace {

using namespace group_norm;

// X is the storage type of x, Y that of dy and the parameters.
template <class X, class Y>
struct BackwardParams {
  using C = compute_t<X>;
  Image m;
  const Y* dy;
  const X* x;
  const C *mean, *variance;
  const Y *weight, *bias;
  X* dx;
  C* work;  // [B, parts, 2, channels]: sums of dz and of dz xhat
  C eps;
  Activation activation;

  // dz = dy * act'(z) and xhat of a run of channels.
  template <int kV>
  VA_DEVICE void row(const Channels<Y, C, kV>& ch, int64_t at, C (&dz)[kV], C (&xhat)[kV]) const {
    load_values(xhat, x + at);
    load_values(dz, dy + at);
    C z[kV];
#pragma unroll
    for (int i = 0; i < kV; ++i) {
      xhat[i] = (xhat[i] - ch.mean[i]) * ch.rstd[i];
      z[i] = xhat[i] * ch.weight[i] + ch.bias[i];
    }
    gpu::times_derivative<sizeof(Y) == 2>(activation, z, dz);
  }
};

template <class X, class Y, int kV>
VA_KERNEL(kThreads)
backward_sums_kernel(BackwardParams<X, Y> p) {
  using C = compute_t<X>;
  const Share<kV> share(p.m);
  const Shared<C> totals = shared_memory<C>(0);  // [lanes, 2, channels]
  const Part part = part_of(p.m, block_x());
  Channels<Y, C, kV> ch;
  C sums[kV], products[kV];
  share.each(
      p.m, part,
      [&](int c) {
        ch.load(p.m, p.mean, p.variance, p.weight, p.bias, part.image, c, p.eps);
#pragma unroll
        for (int i = 0; i < kV; ++i) sums[i] = products[i] = 0;
      },
      [&](int64_t row, int c) {
        C dz[kV], xhat[kV];
        p.row(ch, (part.image * p.m.pixels + row) * p.m.channels + c, dz, xhat);
#pragma unroll
        for (int i = 0; i < kV; ++i) {
          sums[i] += dz[i];
          products[i] += dz[i] * xhat[i];
        }
      },
      [&](int c) {
        const Shared<C> mine = totals + share.lane() * 2 * p.m.channels;
#pragma unroll
        for (int i = 0; i < kV; ++i) {
          mine[c + i] = sums[i];
          mine[p.m.channels + c + i] = products[i];
        }
      });
  add_lanes(totals, share.lanes, 2 * p.m.channels);
  C* const out = p.work + static_cast<int64_t>(block_x()) * 2 * p.m.channels;
  for (int c = thread_index(); c < 2 * p.m.channels; c += kThreads) out[c] = totals[c];
}

// Adds up the parts of an image into its first part; a lane has one of the 2 * channels sums.
template <class C>
VA_KERNEL(kJoinThreads)
join_parts_kernel(Image m, C* work) {
  const Shared<C> scratch = shared_memory<C>(0);
  const int64_t count = 2 * static_cast<int64_t>(m.channels), chunks = (count + kWarp - 1) / kWarp;
  const int64_t image = block_x() / chunks, c = block_x() % chunks * kWarp + lane_index();
  C* const first = work + image * m.parts * count + c;
  C total = 0;
  for (int64_t i = warp_index(); i < m.parts && c < count; i += kJoinWarps) total += first[i * count];
  total = sum_of_warps(total, scratch);
  if (warp_index() == 0 && c < count) *first = total;
}

// dbias and dweight: the images in order.
template <class C>
VA_KERNEL(kThreads)
parameters_kernel(Image m, int64_t batch, const C* work, C* dweight, C* dbias) {
  const int c = block_x() * kThreads + thread_index();
  if (c < 2 * m.channels) {
    C total = 0;
    for (int64_t b = 0; b < batch; ++b) total += work[b * m.parts * 2 * m.channels + c];
    (c < m.channels ? dbias : dweight)[c % m.channels] = total;
  }
}

// With g = dz * weight: dx = rstd (g - mean(g) - xhat mean(g xhat)).
template <class X, class Y, int kV>
VA_KERNEL(kThreads)
dx_kernel(BackwardParams<X, Y> p) {
  using C = compute_t<X>;
  const Shared<C> means = shared_memory<C>(0);  // [2, groups]: of g and g xhat
  const Part part = part_of(p.m, block_x());
  const int size = p.m.channels / p.m.groups;
  const C* const sums = p.work + part.image * p.m.parts * 2 * p.m.channels;
  for (int i = thread_index(); i < 2 * p.m.groups; i += kThreads) {
    const int which = i / p.m.groups, first = i % p.m.groups * size;
    C total = 0;
    for (int c = first; c < first + size; ++c)
      total += C(to_float(p.weight[c])) * sums[which * p.m.channels + c];
    means[i] = total / static_cast<C>(p.m.pixels * size);
  }
  sync_block();
  Channels<Y, C, kV> ch;
  C mean_g[kV], mean_gx[kV];
  Share<kV>(p.m).each(
      p.m, part,
      [&](int c) {
        ch.load(p.m, p.mean, p.variance, p.weight, p.bias, part.image, c, p.eps);
#pragma unroll
        for (int i = 0; i < kV; ++i) {
          mean_g[i] = means[(c + i) / size];
          mean_gx[i] = means[p.m.groups + (c + i) / size];
        }
      },
      [&](int64_t row, int c) {
        const int64_t at = (part.image * p.m.pixels + row) * p.m.channels + c;
        C dz[kV], xhat[kV];
        p.row(ch, at, dz, xhat);
#pragma unroll
        for (int i = 0; i < kV; ++i)
          dz[i] = (dz[i] * ch.weight[i] - mean_g[i] - xhat[i] * mean_gx[i]) * ch.rstd[i];
        store_values(p.dx + at, dz);
      },
      [](int) {});
}

}  // namespace

void cuda::group_norm_backward(const GroupNormBackward& a, Stream stream) {
  const Image m = image_of(a.x, a.mean);
  const int64_t batch = a.x.sizes[0];
  const bool aligned =
      aligned16(a.x) && aligned16(a.dy) && aligned16(a.weight) && aligned16(a.bias) && aligned16(a.dx);
  dispatch_types(a.x, a.dy, aligned, [&](auto tx, auto ty, auto size) {
    using X = typename decltype(tx)::type;
    using Y = typename decltype(ty)::type;
    using C = compute_t<X>;
    constexpr int kBytes = sizeof(C);
    const BackwardParams<X, Y> p{m,
                                 a.dy.ptr<const Y>(),
                                 a.x.ptr<const X>(),
                                 a.mean.ptr<const C>(),
                                 a.variance.ptr<const C>(),
                                 a.weight.ptr<const Y>(),
                                 a.bias.ptr<const Y>(),
                                 a.dx.ptr<X>(),
                                 a.workspace.ptr<C>(),
                                 static_cast<C>(a.eps),
                                 a.activation};
    const int64_t chunks = (2 * m.channels + kWarp - 1) / kWarp;
    launch("group_norm", backward_sums_kernel<X, Y, size()>, {grid(batch * m.parts)}, kThreads,
           Share<size()>::lanes_of(m.channels) * 2 * m.channels * kBytes, stream, p);
    launch("group_norm", join_parts_kernel<C>, {grid(batch * chunks)}, kJoinThreads, kJoinThreads * kBytes,
           stream, m, p.work);
    launch("group_norm", parameters_kernel<C>, {grid((2 * m.channels + kThreads - 1) / kThreads)}, kThreads,
           0, stream, m, batch, static_cast<const C*>(p.work), a.dweight.ptr<C>(), a.dbias.ptr<C>());
    launch("group_norm", dx_kernel<X, Y, size()>, {grid(batch * m.parts)}, kThreads, 2 * m.groups * kBytes,
           stream, p);
  });
}

}  // namespace va
