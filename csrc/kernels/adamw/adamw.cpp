// SPDX-License-Identifier: Apache-2.0
#include "kernels/adamw/adamw.h"

#include "core/dispatch.h"

namespace va {
namespace {

void append(std::vector<AdamWTensor>& list, int64_t& chunks, AdamWTensor tensor) {
  if (tensor.numel == 0) return;
  tensor.first_chunk = chunks;
  chunks += (tensor.numel + kAdamWChunk - 1) / kAdamWChunk;
  list.push_back(tensor);
}

void check_count(size_t n, const char* what, size_t expected) {
  if (n != expected) {
    fail(std::string("adamw: ") + what + " must have " + std::to_string(expected) + " tensors, got " +
         std::to_string(n));
  }
}

void check_positive(bool ok, const char* what, double got) {
  if (!ok) fail(std::string("adamw: ") + what + ", got " + std::to_string(got));
}

// "adamw: grads[3]", made only when a check fails.
template <class F>
void checked(const char* list, size_t index, F&& check_one) {
  try {
    check_one("");
  } catch (const Error&) {
    check_one((std::string(list) + "[" + std::to_string(index) + "]").c_str());
  }
}

void check_step(int64_t step) {
  check_positive(step >= 1, "step must be at least 1", static_cast<double>(step));
}

}  // namespace

void adamw(const AdamW& a, Stream stream) {
  const size_t n = a.params.size();
  check_count(a.grads.size(), "grads", n);
  check_count(a.exp_avgs.size(), "exp_avgs", n);
  check_count(a.exp_avg_sqs.size(), "exp_avg_sqs", n);
  if (a.step_tensor.defined()) {
    check_shape(a.step_tensor, "adamw: step", {});
    check_dtype(a.step_tensor, "adamw: step", {DType::i64});
    if (n > 0) check_device(a.step_tensor, "adamw: step", a.params[0]);
  } else {
    check_step(a.step);
  }
  check_positive(a.beta1 >= 0 && a.beta1 < 1, "betas[0] must be in [0, 1)", a.beta1);
  check_positive(a.beta2 >= 0 && a.beta2 < 1, "betas[1] must be in [0, 1)", a.beta2);
  check_positive(a.eps >= 0, "eps must not be negative", a.eps);
  std::vector<AdamWTensor> list;
  list.reserve(n);
  int64_t chunks = 0;
  for (size_t i = 0; i < n; ++i) {
    const TensorView &p = a.params[i], &g = a.grads[i], &m = a.exp_avgs[i], &v = a.exp_avg_sqs[i];
    const DType state = p.dtype == DType::f64 ? DType::f64 : DType::f32;
    checked("adamw: params", i, [&](const char* what) {
      check_dtype(p, what, {DType::f32, DType::f64, DType::f16, DType::bf16});
      check_device(p, what, a.params[0]);
      check_dense(p, what);
    });
    checked("adamw: grads", i, [&](const char* what) {
      check_like(g, what, p);
      check_same_layout(g, what, p);
    });
    for (const auto& [x, name] : {std::pair{&m, "adamw: exp_avgs"}, std::pair{&v, "adamw: exp_avg_sqs"}}) {
      checked(name, i, [&, x = x](const char* what) {
        check_dtype(*x, what, {state});
        check_device(*x, what, p);
        check_same_layout(*x, what, p);
      });
    }
    append(list, chunks, {p.dtype, p.numel(), 0, p.data, g.data, m.data, v.data});
  }
  if (list.empty()) return;
  const AdamWList all{list.data(), static_cast<int64_t>(list.size()), chunks};
  dispatch_device(
      a.params[0].device, "adamw",
      [&](auto isa) {
        if (!a.step_tensor.defined()) return cpu::adamw<isa()>(a, all);
        AdamW now = a;
        now.step = *a.step_tensor.ptr<const int64_t>();
        check_step(now.step);
        cpu::adamw<isa()>(now, all);
      },
      [&] { cuda::adamw(a, all, stream); });
}

void grad_norm(const GradNorm& a, Stream stream) {
  check_shape(a.norm, "grad_norm: norm", {});
  check_dtype(a.norm, "grad_norm: norm", {DType::f64});
  if (runs_on_gpu(a.norm.device)) {
    check_shape(a.workspace, "grad_norm: workspace", {kGradNormBlocks});
    check_like(a.workspace, "grad_norm: workspace", a.norm);
    check_contiguous(a.workspace, "grad_norm: workspace");
  }
  std::vector<AdamWTensor> list;
  list.reserve(a.grads.size());
  int64_t chunks = 0;
  for (size_t i = 0; i < a.grads.size(); ++i) {
    const TensorView& g = a.grads[i];
    checked("grad_norm: grads", i, [&](const char* what) {
      check_dtype(g, what, {DType::f32, DType::f64, DType::f16, DType::bf16});
      check_device(g, what, a.norm);
      check_dense(g, what);
    });
    append(list, chunks, {g.dtype, g.numel(), 0, nullptr, g.data, nullptr, nullptr});
  }
  const AdamWList all{list.data(), static_cast<int64_t>(list.size()), chunks};
  dispatch_device(
      a.norm.device, "grad_norm", [&](auto isa) { cpu::grad_norm<isa()>(a, all); },
      [&] { cuda::grad_norm(a, all, stream); });
}

}  // namespace va
