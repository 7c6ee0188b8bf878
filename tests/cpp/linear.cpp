// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear/linear.h"

#include "tests/cpp/check.h"

namespace va::test {
namespace {

template <class T>
void run(int64_t M, int64_t N, int64_t K, bool prepacked) {
  using C = compute_t<T>;
  const auto x = random<T>({M, K}), weight = random<T>({N, K}, 1 / std::sqrt(static_cast<double>(K)));
  const auto bias = random<T>({N}), scale = random<T>({N}), residual = random<T>({M, N}),
             dy = random<T>({M, N});
  Array<T> y({M, N}), z({M, N}), dz({M, N}), dx({M, K}), dweight({N, K}),
      packed({linear_packed_numel(weight.view)});
  Array<C> dbias({N}), dscale({N}), work({kLinearParts, 2, N});
  if (prepacked) linear_pack(weight.view, packed.view);
  linear_forward({x.view, prepacked ? TensorView{} : weight.view, prepacked ? packed.view : TensorView{},
                  bias.view, residual.view, scale.view, y.view, z.view, Activation::silu, 0},
                 0);
  LinearBackward back{};
  back.dy = dy.view, back.x = x.view, back.weight = weight.view, back.z = z.view, back.scale = scale.view;
  back.dz = dz.view, back.dx = dx.view, back.dweight = dweight.view, back.dbias = dbias.view;
  back.dscale = dscale.view, back.workspace = work.view, back.activation = Activation::silu;
  linear_backward(back, 0);
  const auto at = [](int64_t i) { return static_cast<size_t>(i); };
  std::vector<double> want_z, want_y, want_dz, want_dx(at(M * K)), want_dw(at(N * K)), want_db(at(N)),
      want_ds(at(N));
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      double sum = bias[n];
      for (int64_t k = 0; k < K; ++k) sum += x[m * K + k] * weight[n * K + k];
      want_z.push_back(sum);
      want_y.push_back(residual[m * N + n] + scale[n] * sum / (1 + std::exp(-sum)));
      // The backward pass reads z as it was stored, and dz after rounding.
      const double zs = z[m * N + n], s = 1 / (1 + std::exp(-zs)), d = dy[m * N + n];
      want_dz.push_back(d * scale[n] * s * (1 + zs * (1 - s)));
      want_ds[at(n)] += d * zs * s;
      want_db[at(n)] += want_dz.back();
      for (int64_t k = 0; k < K; ++k) {
        want_dx[at(m * K + k)] += dz[m * N + n] * weight[n * K + k];
        want_dw[at(n * K + k)] += dz[m * N + n] * x[m * K + k];
      }
    }
  }
  check_close("linear z", z, want_z);
  check_close("linear y", y, want_y);
  check_close("linear dz", dz, want_dz);
  check_close("linear dx", dx, want_dx);
  check_close("linear dweight", dweight, want_dw);
  check_close("linear dbias", dbias, want_db, 4 * tolerance<T>());  // sums of rounded or of exact dz
  check_close("linear dscale", dscale, want_ds, 4 * tolerance<C>());
}

}  // namespace

TEST(linear_matches) {
  for_floats([](auto t) {
    for (const bool prepacked : {false, true}) {
      run<decltype(t)>(1, 3, 2, prepacked);
      run<decltype(t)>(37, 70, 90, prepacked);
      run<decltype(t)>(8, 130, 500, prepacked);  // longer than a block of k
    }
  });
}

}  // namespace va::test
