// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention.h"

#include "tests/cpp/check.h"

namespace va::test {
namespace {

template <class T>
void run(int64_t N, int64_t M, int64_t D, bool causal, bool padded) {
  using C = compute_t<T>;
  const int64_t B = 2, H = 3;
  const double scale = 1 / std::sqrt(static_cast<double>(D));
  const auto q = random<T>({B, N, H, D}), k = random<T>({B, M, H, D}), v = random<T>({B, M, H, D});
  const auto dy = random<T>({B, N, H, D});
  Array<uint8_t> padding({B, M});
  if (padded)
    for (int64_t i = 0; i < B * M; ++i) padding.data[static_cast<size_t>(i)] = i % 7 == 3;
  TensorView mask = padding.view;
  mask.dtype = DType::boolean;
  Array<T> y({B, N, H, D}), dq({B, N, H, D}), dk({B, M, H, D}), dv({B, M, H, D});
  Array<C> lse({B, H, N}), delta({B, H, N});
  const TensorView key_padding = padded ? mask : TensorView{};
  attention_forward({q.view, k.view, v.view, key_padding, y.view, lse.view, causal, scale}, 0);
  attention_backward({q.view, k.view, v.view, key_padding, y.view, lse.view, delta.view, dy.view, dq.view,
                      dk.view, dv.view, causal, scale},
                     0);
  const auto zeros = [](int64_t n) { return std::vector<double>(static_cast<size_t>(n)); };
  auto want_y = zeros(B * N * H * D), want_dq = want_y, want_dk = zeros(B * M * H * D), want_dv = want_dk;
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t h = 0; h < H; ++h) {
      const auto at = [&](int64_t length, int64_t i) { return ((b * length + i) * H + h) * D; };
      for (int64_t i = 0; i < N; ++i) {
        auto p = zeros(M), dp = zeros(M);
        double sum = 0, mean = 0;
        for (int64_t j = 0; j < M; ++j) {
          if ((causal && j > i + M - N) || (padded && padding.data[static_cast<size_t>(b * M + j)])) continue;
          double s = 0;
          for (int64_t d = 0; d < D; ++d) {
            s += q[at(N, i) + d] * k[at(M, j) + d];
            dp[static_cast<size_t>(j)] += dy[at(N, i) + d] * v[at(M, j) + d];
          }
          sum += p[static_cast<size_t>(j)] = std::exp(scale * s);
        }
        for (size_t j = 0; j < p.size(); ++j) {
          p[j] = sum > 0 ? p[j] / sum : 0;
          mean += p[j] * dp[j];
        }
        for (int64_t j = 0; j < M; ++j) {
          const double pj = p[static_cast<size_t>(j)], ds = scale * pj * (dp[static_cast<size_t>(j)] - mean);
          for (int64_t d = 0; d < D; ++d) {
            const auto qi = static_cast<size_t>(at(N, i) + d), kj = static_cast<size_t>(at(M, j) + d);
            want_y[qi] += pj * v[at(M, j) + d];
            want_dq[qi] += ds * k[at(M, j) + d];
            want_dk[kj] += ds * q[at(N, i) + d];
            want_dv[kj] += pj * dy[at(N, i) + d];
          }
        }
      }
    }
  }
  check_close("attention y", y, want_y);
  check_close("attention dq", dq, want_dq);
  check_close("attention dk", dk, want_dk);
  check_close("attention dv", dv, want_dv);
}

}  // namespace

TEST(attention_matches) {
  for_floats([](auto t) {
    for (const bool causal : {false, true}) {
      for (const bool padded : {false, true}) {
        run<decltype(t)>(50, 50, 64, causal, padded);
        run<decltype(t)>(7, 77, 40, causal, padded);
      }
    }
    run<decltype(t)>(1, 1, 8, false, false);
  });
}

}  // namespace va::test
