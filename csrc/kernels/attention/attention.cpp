// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention.h"

#include <string>

#include "core/dispatch.h"

namespace va {
namespace {

struct Sizes {
  int64_t batch, queries, keys, heads, dim;
};

void check_heads(const TensorView& x, const char* what, int64_t batch, int64_t tokens, const Sizes& n,
                 const TensorView& first) {
  check_shape(x, what, {batch, tokens, n.heads, n.dim});
  check_like(x, what, first);
  if (x.numel() > 0 && n.dim > 1 && x.strides[3] != 1)
    fail(std::string(what) + " must have a contiguous last axis");
}

// What forward and backward share.
template <class Args>
Sizes check_inputs(const Args& a) {
  const auto [batch, queries, heads, dim] = a.q.template shape<4>("attention: q");
  const int64_t keys = a.k.template shape<4>("attention: k")[1];
  const Sizes n{batch, queries, keys, heads, dim};
  check_dtype(a.q, "attention: q", {DType::f32, DType::f64, DType::f16, DType::bf16});
  check_heads(a.q, "attention: q", batch, queries, n, a.q);
  check_heads(a.k, "attention: k", batch, keys, n, a.q);
  check_heads(a.v, "attention: v", batch, keys, n, a.q);
  check_heads(a.y, "attention: y", batch, queries, n, a.q);
  if (dim > kAttentionMaxHeadDim) {
    fail("attention: head dim must be at most " + std::to_string(kAttentionMaxHeadDim) + ", got " +
         std::to_string(dim));
  }
  if (a.key_padding.defined()) {
    check_shape(a.key_padding, "attention: key_padding", {batch, keys});
    check_dtype(a.key_padding, "attention: key_padding", {DType::boolean});
    check_device(a.key_padding, "attention: key_padding", a.q);
  }
  check_shape(a.lse, "attention: lse", {batch, heads, queries});
  check_dtype(a.lse, "attention: lse", {a.q.dtype == DType::f64 ? DType::f64 : DType::f32});
  check_device(a.lse, "attention: lse", a.q);
  check_contiguous(a.lse, "attention: lse");
  return n;
}

template <class Args>
void check_workspace(const Args& a, bool backward) {
  const int64_t needed = attention_workspace(a.q, a.k, backward);
  if (needed == 0) return;
  check_dtype(a.workspace, "attention: workspace", {DType::u8});
  check_device(a.workspace, "attention: workspace", a.q);
  check_contiguous(a.workspace, "attention: workspace");
  check(a.workspace.numel() >= needed, "attention: workspace is too small");
}

}  // namespace

int64_t attention_workspace([[maybe_unused]] const TensorView& q, [[maybe_unused]] const TensorView& k,
                            [[maybe_unused]] bool backward) {
  if constexpr (kOpHasCuda) {
    if (runs_on_gpu(q.device)) {
      const DeviceGuard guard(q.device);
      return cuda::attention_workspace(q, k, backward);
    }
  }
  return 0;
}

void attention_forward(const AttentionForward& a, Stream stream) {
  const Sizes n = check_inputs(a);
  if (n.batch * n.queries * n.heads == 0) return;
  check_workspace(a, false);
  dispatch_device(
      a.q.device, "attention", [&](auto isa) { cpu::attention_forward<isa()>(a); },
      [&] { cuda::attention_forward(a, stream); });
}

void attention_backward(const AttentionBackward& a, Stream stream) {
  const Sizes n = check_inputs(a);
  check_shape(a.delta, "attention: delta", {n.batch, n.heads, n.queries});
  check_like(a.delta, "attention: delta", a.lse);
  check_contiguous(a.delta, "attention: delta");
  check_heads(a.dy, "attention: dy", n.batch, n.queries, n, a.q);
  check_heads(a.dq, "attention: dq", n.batch, n.queries, n, a.q);
  check_heads(a.dk, "attention: dk", n.batch, n.keys, n, a.q);
  check_heads(a.dv, "attention: dv", n.batch, n.keys, n, a.q);
  if (n.batch * n.heads * n.dim == 0) return;
  check_workspace(a, true);
  dispatch_device(
      a.q.device, "attention", [&](auto isa) { cpu::attention_backward<isa()>(a); },
      [&] { cuda::attention_backward(a, stream); });
}

}  // namespace va
