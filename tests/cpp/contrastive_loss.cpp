// SPDX-License-Identifier: Apache-2.0
#include "kernels/contrastive_loss/contrastive_loss.h"

#include "tests/cpp/check.h"

namespace va::test {
namespace {

// Images [first, first + M) of N pairs; a sigmoid when there is a bias.
template <class T>
void run(bool sigmoid, int64_t M, int64_t N, int64_t first) {
  const int64_t E = 5;
  const auto image = random<T>({M, E}), text = random<T>({N, E});
  const auto scale = random<T>({1}, 2), bias = random<T>({1});
  const auto drows = random<T>({M}), down = random<T>({M}), dcolumns = random<T>({N});
  Array<T> rows({M}), own({M}), top({N}), columns({N}), dimage({M, E}), dtext({N, E}), dscale({1}),
      dbias({1});
  Array<T> workspace({contrastive_loss_workspace(M, N)});
  const TensorView none;
  const auto softmax_only = [&](const Array<T>& x) { return sigmoid ? none : x.view; };
  const TensorView b = sigmoid ? bias.view : none;
  contrastive_loss_forward({image.view, text.view, scale.view, b, rows.view, softmax_only(own),
                            softmax_only(top), softmax_only(columns), workspace.view, first},
                           0);
  contrastive_loss_backward(
      {drows.view, softmax_only(down), softmax_only(dcolumns), image.view, text.view, scale.view, b,
       rows.view, softmax_only(own), softmax_only(top), softmax_only(columns), dimage.view, dtext.view,
       dscale.view, sigmoid ? dbias.view : none, workspace.view, first},
      0);

  const auto at = [](int64_t i) { return static_cast<size_t>(i); };
  std::vector<double> cosine(at(M * N)), logit(at(M * N)), row_sum(at(M)), column_sum(at(N));
  for (int64_t i = 0; i < M; ++i) {
    for (int64_t j = 0; j < N; ++j) {
      double c = 0;
      for (int64_t e = 0; e < E; ++e) c += image[i * E + e] * text[j * E + e];
      const double l = scale[0] * c + (sigmoid ? bias[0] : 0);
      cosine[at(i * N + j)] = c, logit[at(i * N + j)] = l;
      row_sum[at(i)] += std::exp(l), column_sum[at(j)] += std::exp(l);
    }
  }
  std::vector<double> want_rows, want_columns, want_dimage(at(M * E)), want_dtext(at(N * E));
  double want_dscale = 0, want_dbias = 0;
  for (int64_t i = 0; i < M; ++i) {
    double row = sigmoid ? 0 : std::log(row_sum[at(i)]) - logit[at(i * N + first + i)];
    for (int64_t j = 0; j < N; ++j) {
      const double l = logit[at(i * N + j)], pair = first >= 0 && j == first + i;
      double g;
      if (sigmoid) {
        row += std::log1p(std::exp(pair ? -l : l));
        g = drows[i] * (1 / (1 + std::exp(-l)) - pair);
      } else {
        g = drows[i] * (std::exp(l) / row_sum[at(i)] - pair) + down[i] * pair +
            dcolumns[j] * std::exp(l) / column_sum[at(j)];
      }
      want_dscale += g * cosine[at(i * N + j)], want_dbias += g;
      for (int64_t e = 0; e < E; ++e) {
        want_dimage[at(i * E + e)] += scale[0] * g * text[j * E + e];
        want_dtext[at(j * E + e)] += scale[0] * g * image[i * E + e];
      }
    }
    want_rows.push_back(row);
  }
  check_close("contrastive_loss rows", rows, want_rows);
  check_close("contrastive_loss dimage", dimage, want_dimage);
  check_close("contrastive_loss dtext", dtext, want_dtext);
  check_close("contrastive_loss dscale", dscale, {want_dscale}, 10 * tolerance<T>());
  if (sigmoid) return check_close("contrastive_loss dbias", dbias, {want_dbias}, 10 * tolerance<T>());
  for (int64_t j = 0; j < N; ++j) {
    columns.data[at(j)] += top.data[at(j)];
    want_columns.push_back(std::log(column_sum[at(j)]));
  }
  check_close("contrastive_loss columns", columns, want_columns);
}

}  // namespace

TEST(contrastive_loss_matches) {
  for (const bool sigmoid : {false, true}) {
    run<float>(sigmoid, 37, 50, 13), run<double>(sigmoid, 37, 50, 13);
    run<float>(sigmoid, 400, 400, 0), run<double>(sigmoid, 400, 400, 0);  // more than one block of rows
    if (sigmoid) run<float>(true, 9, 21, -1), run<double>(true, 9, 21, -1);
  }
}

}  // namespace va::test
