// SPDX-License-Identifier: Apache-2.0
#include "kernels/cross_entropy/cross_entropy.h"

#include "tests/cpp/check.h"

namespace va::test {
namespace {

template <class T>
void run(bool probabilities, Reduction reduction, double smoothing) {
  using C = compute_t<T>;
  const int64_t rows = 29, K = 53;
  const auto logits = random<T>({rows, K}, 3);
  auto soft = random<C>({rows, K});
  Array<int64_t> hard({rows});
  for (C& p : soft.data) p = std::fabs(p) / C(K);
  for (int64_t i = 0; i < rows; ++i) hard.data[static_cast<size_t>(i)] = i % 5 == 2 ? -100 : i * 7 % K;
  const TensorView target = probabilities ? soft.view : hard.view;
  const int64_t outputs = reduction == Reduction::none ? rows : 1;
  Array<C> loss({outputs}), losses({rows}), lse({rows}), dtarget({rows, K});
  Array<T> dlogits({rows, K});
  const auto dloss = random<C>({outputs});
  cross_entropy_forward({logits.view, target, loss.view, losses.view, lse.view, smoothing, reduction, -100},
                        0);
  cross_entropy_backward(
      {dloss.view, logits.view, target, lse.view, dlogits.view, probabilities ? dtarget.view : TensorView{},
       TensorView{}, smoothing, reduction, -100},
      0);

  const auto kept = [&](int64_t r) { return probabilities || hard.data[static_cast<size_t>(r)] != -100; };
  double count = 0, total = 0;
  for (int64_t r = 0; r < rows; ++r) count += kept(r);
  std::vector<double> want_loss, want_dx, want_dt;
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0, row = 0, mass = 0;
    std::vector<double> t, logp;
    for (int64_t k = 0; k < K; ++k) sum += std::exp(logits[r * K + k]);
    for (int64_t k = 0; k < K; ++k) {
      const double given = probabilities ? soft[r * K + k] : hard.data[static_cast<size_t>(r)] == k;
      t.push_back(kept(r) ? given * (1 - smoothing) + smoothing / K : 0);
      logp.push_back(logits[r * K + k] - std::log(sum));
      row -= t.back() * logp.back();
      mass += t.back();
    }
    want_loss.push_back(row);
    total += row;
    const double g = reduction == Reduction::none   ? dloss[r]
                     : reduction == Reduction::mean ? dloss[0] / count
                                                    : dloss[0];
    for (size_t k = 0; k < t.size(); ++k) {
      want_dx.push_back(g * (std::exp(logp[k]) * mass - t[k]));
      want_dt.push_back(-g * (1 - smoothing) * logp[k]);
    }
  }
  if (reduction != Reduction::none) want_loss = {reduction == Reduction::mean ? total / count : total};
  check_close("cross_entropy loss", loss, want_loss);
  check_close("cross_entropy dlogits", dlogits, want_dx);
  if (probabilities) check_close("cross_entropy dtarget", dtarget, want_dt);
}

}  // namespace

TEST(cross_entropy_matches) {
  for_floats([](auto t) {
    for (const auto reduction : {Reduction::none, Reduction::mean, Reduction::sum})
      for (const double smoothing : {0.0, 0.1})
        for (const bool probabilities : {false, true}) run<decltype(t)>(probabilities, reduction, smoothing);
  });
}

}  // namespace va::test
