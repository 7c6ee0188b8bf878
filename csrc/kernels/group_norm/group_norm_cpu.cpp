// SPDX-License-Identifier: Apache-2.0
#include "kernels/group_norm/group_norm.h"

#include <cmath>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/common/activation_math.h"

namespace va {
namespace VA_ISA {
namespace {

// The image and the pixels [begin, end) of one part.
struct Part {
  int64_t image, begin, end;
};
struct Cut {
  int64_t pixels, parts, rows;

  Cut(int64_t pixels_, int64_t channels)
      : pixels(pixels_), parts(group_norm_parts(pixels_, channels)), rows((pixels_ + parts - 1) / parts) {}
  Part part(int64_t index) const {
    const int64_t begin = index % parts * rows, end = begin + rows;
    return {index / parts, begin < pixels ? begin : pixels, end < pixels ? end : pixels};
  }
};

template <class C>
C sum_of(const C* p, int64_t n) {
  Vec<C> total{};
  for_lanes<C>(n, [&](int64_t i, auto m) { total += load_n(p + i, m); });
  return reduce_add(total);
}

// Mean and squared deviations of one part, per group.
template <class T, class C = compute_t<T>>
void part_statistics(const T* x, int64_t rows, int64_t channels, int64_t groups, C* mean, C* squares) {
  C* const sums = static_cast<C*>(thread_scratch(2 * static_cast<size_t>(channels) * sizeof(C)));
  C* const centres = sums + channels;
  const int64_t size = channels / groups;
  // From the distances to the first value: exact for equal values, whose variance is then 0.
  for (int64_t g = 0; g < groups; ++g) {
    mean[g] = rows > 0 ? load_scalar(x + g * size) : C(0);
    for (int64_t c = 0; c < size; ++c) centres[g * size + c] = mean[g];
  }
  std::memset(sums, 0, static_cast<size_t>(channels) * sizeof(C));
  for (int64_t r = 0; r < rows; ++r)
    for_lanes<C>(channels, [&](int64_t c, auto n) {
      const Vec<C> d = load_n(x + r * channels + c, n) - load_n(centres + c, n);
      store_n(sums + c, load_n(sums + c, n) + d, n);
    });
  for (int64_t g = 0; g < groups; ++g) {
    if (rows > 0) mean[g] += sum_of(sums + g * size, size) / static_cast<C>(rows * size);
    for (int64_t c = 0; c < size; ++c) centres[g * size + c] = mean[g];
  }
  std::memset(sums, 0, static_cast<size_t>(channels) * sizeof(C));
  for (int64_t r = 0; r < rows; ++r)
    for_lanes<C>(channels, [&](int64_t c, auto n) {
      const Vec<C> d = load_n(x + r * channels + c, n) - load_n(centres + c, n);
      store_n(sums + c, load_n(sums + c, n) + d * d, n);
    });
  for (int64_t g = 0; g < groups; ++g) squares[g] = sum_of(sums + g * size, size);
}

template <class T, class C = compute_t<T>>
void statistics(const GroupNormStatistics& a) {
  const int64_t batch = a.x.sizes[0], channels = a.x.sizes[2], groups = a.mean.sizes[1];
  const Cut cut(a.x.sizes[1], channels);
  C* const work = a.workspace.ptr<C>();
  parallel_for(batch * cut.parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const Part p = cut.part(i);
      const T* const x = a.x.ptr<T>() + (p.image * cut.pixels + p.begin) * channels;
      part_statistics<T>(x, p.end - p.begin, channels, groups, work + 2 * i * groups,
                         work + (2 * i + 1) * groups);
    }
  });
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t g = 0; g < groups; ++g) {
      double mean = 0, squares = 0, count = 0;
      for (int64_t i = b * cut.parts; i < (b + 1) * cut.parts; ++i) {
        const Part p = cut.part(i);
        if (p.end == p.begin) continue;
        const auto n = static_cast<double>((p.end - p.begin) * (channels / groups));
        const double shift = work[2 * i * groups + g] - mean;
        count += n;
        mean += shift * n / count;
        squares += work[(2 * i + 1) * groups + g] + shift * shift * n * (count - n) / count;
      }
      a.mean.ptr<C>()[b * groups + g] = static_cast<C>(mean);
      a.variance.ptr<C>()[b * groups + g] = static_cast<C>(squares / count);
    }
  }
}

// Per channel of one image: its group's mean and 1 / standard deviation.
template <class C>
void spread(const TensorView& mean, const TensorView& variance, int64_t image, int64_t channels, double eps,
            C* means, C* rstds) {
  const int64_t groups = mean.sizes[1], size = channels / groups;
  for (int64_t g = 0; g < groups; ++g) {
    const C m = mean.ptr<C>()[image * groups + g];
    const C r = C(1) / std::sqrt(variance.ptr<C>()[image * groups + g] + static_cast<C>(eps));
    for (int64_t c = g * size; c < (g + 1) * size; ++c) means[c] = m, rstds[c] = r;
  }
}

// X is the storage type of x, Y that of y and the parameters.
template <class X, class Y, Activation act>
void forward(const GroupNormForward& a) {
  using C = compute_t<X>;
  const int64_t channels = a.x.sizes[2];
  const Cut cut(a.x.sizes[1], channels);
  parallel_for(a.x.sizes[0] * cut.parts, 1, [&](int64_t first, int64_t last) {
    C* const means = static_cast<C*>(thread_scratch(3 * static_cast<size_t>(channels) * sizeof(C)));
    C *const factors = means + channels, *const shifts = factors + channels;
    int64_t image = -1;
    for (int64_t i = first; i < last; ++i) {
      const Part p = cut.part(i);
      if (p.image != image) {
        image = p.image;
        spread(a.mean, a.variance, image, channels, a.eps, means, factors);
        for_lanes<C>(channels, [&](int64_t c, auto n) {
          store_n(factors + c, load_n(factors + c, n) * load_n(a.weight.ptr<Y>() + c, n), n);
          store_n(shifts + c, load_n(a.bias.ptr<Y>() + c, n), n);
        });
      }
      for (int64_t r = p.begin; r < p.end; ++r) {
        const int64_t row = (image * cut.pixels + r) * channels;
        for_lanes<C>(channels, [&](int64_t c, auto n) {
          const Vec<C> centred = load_n(a.x.ptr<X>() + row + c, n) - load_n(means + c, n);
          const Vec<C> z = fmadd(centred, load_n(factors + c, n), load_n(shifts + c, n));
          store_n(a.y.ptr<Y>() + row + c, ActivationFn<act>::value(z), n);
        });
      }
    }
  });
}

// dz = dy * act'(z) and xhat of one vector.
template <class X, class Y, Activation act>
struct Row {
  using C = compute_t<X>;
  const GroupNormBackward& a;
  const C *means, *rstds;

  VA_INLINE void operator()(int64_t row, int64_t c, int64_t n, Vec<C>& dz, Vec<C>& xhat) const {
    xhat = (load_n(a.x.ptr<X>() + row + c, n) - load_n(means + c, n)) * load_n(rstds + c, n);
    dz = load_n(a.dy.ptr<Y>() + row + c, n);
    if (act != Activation::none) {
      const Vec<C> z = fmadd(xhat, load_n(a.weight.ptr<Y>() + c, n), load_n(a.bias.ptr<Y>() + c, n));
      dz *= ActivationFn<act>::derivative(z);
    }
  }
};

// With g = dz * weight: dx = rstd (g - mean(g) - xhat mean(g xhat)), dweight = sum dz xhat, dbias = sum dz.
template <class X, class Y, Activation act>
void backward(const GroupNormBackward& a) {
  using C = compute_t<X>;
  const int64_t batch = a.x.sizes[0], channels = a.x.sizes[2], groups = a.mean.sizes[1];
  const int64_t size = channels / groups;
  const Cut cut(a.x.sizes[1], channels);
  C* const work = a.workspace.ptr<C>();  // [B, parts, 2, C]: sums of dz and dz xhat
  const auto bytes = static_cast<size_t>(channels) * sizeof(C);
  // Sums of each part.
  parallel_for(batch * cut.parts, 1, [&](int64_t first, int64_t last) {
    C* const means = static_cast<C*>(thread_scratch(2 * bytes));
    C* const rstds = means + channels;
    int64_t image = -1;
    for (int64_t i = first; i < last; ++i) {
      const Part p = cut.part(i);
      if (p.image != image) spread(a.mean, a.variance, image = p.image, channels, a.eps, means, rstds);
      C *const sums = work + 2 * i * channels, *const products = sums + channels;
      std::memset(sums, 0, 2 * bytes);
      for (int64_t r = p.begin; r < p.end; ++r)
        for_lanes<C>(channels, [&](int64_t c, auto n) {
          Vec<C> dz, xhat;
          Row<X, Y, act>{a, means, rstds}((image * cut.pixels + r) * channels, c, n, dz, xhat);
          store_n(sums + c, load_n(sums + c, n) + dz, n);
          store_n(products + c, load_n(products + c, n) + dz * xhat, n);
        });
    }
  });
  // Added up in order: first the parts of an image, kept in the image's first part, then the images.
  for (int64_t b = 0; b < batch; ++b) {
    C* const total = work + 2 * b * cut.parts * channels;
    for (int64_t part = 1; part < cut.parts; ++part) {
      const C* const sums = total + 2 * part * channels;
      for_lanes<C>(2 * channels, [&](int64_t c, auto n) {
        store_n(total + c, load_n(total + c, n) + load_n(sums + c, n), n);
      });
    }
  }
  for (int which = 0; which < 2; ++which) {
    C* const out = (which ? a.dweight : a.dbias).ptr<C>();
    for_lanes<C>(channels, [&](int64_t c, auto n) {
      Vec<C> total{};
      for (int64_t b = 0; b < batch; ++b)
        total += load_n(work + (2 * b * cut.parts + which) * channels + c, n);
      store_n(out + c, total, n);
    });
  }
  parallel_for(batch * cut.parts, 1, [&](int64_t first, int64_t last) {
    C* const means = static_cast<C*>(thread_scratch(4 * bytes));
    C *const rstds = means + channels, *const mean_g = rstds + channels, *const mean_gx = mean_g + channels;
    int64_t image = -1;
    for (int64_t i = first; i < last; ++i) {
      const Part p = cut.part(i);
      if (p.image != image) {
        image = p.image;
        spread(a.mean, a.variance, image, channels, a.eps, means, rstds);
        const C* const sums = work + 2 * image * cut.parts * channels;
        const C count = static_cast<C>(cut.pixels * size);
        for (int64_t g = 0; g < groups; ++g) {
          C total = 0, total_x = 0;
          for (int64_t c = g * size; c < (g + 1) * size; ++c) {
            const C w = load_scalar(a.weight.ptr<Y>() + c);
            total += w * sums[c];
            total_x += w * sums[channels + c];
          }
          for (int64_t c = g * size; c < (g + 1) * size; ++c)
            mean_g[c] = total / count, mean_gx[c] = total_x / count;
        }
      }
      for (int64_t r = p.begin; r < p.end; ++r) {
        const int64_t row = (image * cut.pixels + r) * channels;
        for_lanes<C>(channels, [&](int64_t c, auto n) {
          Vec<C> dz, xhat;
          Row<X, Y, act>{a, means, rstds}(row, c, n, dz, xhat);
          const Vec<C> g = dz * load_n(a.weight.ptr<Y>() + c, n);
          store_n(a.dx.ptr<X>() + row + c,
                  (g - load_n(mean_g + c, n) - xhat * load_n(mean_gx + c, n)) * load_n(rstds + c, n), n);
        });
      }
    }
  });
}

// f(x tag, y tag, activation)
template <class F>
void dispatch_types(DType x, DType y, Activation activation, F&& f) {
  dispatch_float(y, "group_norm: y", [&](auto t) {
    using Y = typename decltype(t)::type;
    dispatch_activation(activation, [&](auto act) {
      if (x == y)
        f(t, t, act);
      else
        f(TypeTag<compute_t<Y>>{}, t, act);
    });
  });
}

}  // namespace
}  // namespace VA_ISA

namespace cpu {

template <>
void group_norm_statistics<kIsa>(const GroupNormStatistics& a) {
  dispatch_float(a.x.dtype, "group_norm: x",
                 [&](auto t) { VA_ISA::statistics<typename decltype(t)::type>(a); });
}

template <>
void group_norm_forward<kIsa>(const GroupNormForward& a) {
  VA_ISA::dispatch_types(a.x.dtype, a.y.dtype, a.activation, [&](auto x, auto y, auto act) {
    VA_ISA::forward<typename decltype(x)::type, typename decltype(y)::type, act()>(a);
  });
}

template <>
void group_norm_backward<kIsa>(const GroupNormBackward& a) {
  VA_ISA::dispatch_types(a.x.dtype, a.dy.dtype, a.activation, [&](auto x, auto y, auto act) {
    VA_ISA::backward<typename decltype(x)::type, typename decltype(y)::type, act()>(a);
  });
}

}  // namespace cpu
}  // namespace va
