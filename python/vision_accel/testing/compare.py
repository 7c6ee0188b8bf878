# SPDX-License-Identifier: Apache-2.0
"""The accuracy rule: an op may err at most twice as much as plain torch does in the same dtype.

Truth is the reference evaluated in float64. The rule holds for every output and every gradient.
The form of the rule follows flash-attention's tests.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Slack per unit of max(1, largest true value), for results on which torch happens to err by nothing.
ATOL = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

Fn = Callable[..., Tensor | Sequence[Tensor]]


def evaluate(fn: Fn, args: Sequence[Any], grads: bool, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The outputs of ``fn(*args)``, then the gradients of every floating tensor in args.

    The gradients are those of a fixed random weighting of all floating outputs. With ``dtype`` the
    floating arguments are converted first.
    """
    leaves = []
    call = []
    for a in args:
        if isinstance(a, Tensor) and a.is_floating_point():
            # A non-contiguous argument stays so: strides are part of the case.
            a = a.detach() if dtype is None else a.detach().to(dtype)
            if grads:
                a.requires_grad_()
                leaves.append(a)
        call.append(a)
    outputs = fn(*call)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    results = [o.detach() for o in outputs]
    if grads:
        generator = torch.Generator().manual_seed(0)
        floating = [o for o in outputs if o.is_floating_point()]
        # One device's generator, so that every device gets the same weights.
        on_cpu: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
        weights = [torch.randn(o.shape, **on_cpu).to(o) for o in floating]
        found = torch.autograd.grad(floating, leaves, weights, allow_unused=True)
        results += [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]
    return results


def assert_accurate(ours: Fn, reference: Fn, args: Sequence[Any], *, grads: bool = True) -> None:
    """Check ``err(ours) <= 2 * err(torch, same dtype) + atol`` on outputs and gradients."""
    got = evaluate(ours, args, grads)
    same_dtype = evaluate(reference, args, grads)
    truth = evaluate(reference, args, grads, torch.float64)
    assert len(got) == len(truth)
    for i, (g, s, t) in enumerate(zip(got, same_dtype, truth, strict=True)):
        assert g.shape == t.shape, f"result {i}: shape {list(g.shape)}, expected {list(t.shape)}"
        assert g.dtype == s.dtype, f"result {i}: dtype {g.dtype}, expected {s.dtype}"
        if not g.is_floating_point():
            assert torch.equal(g, s), f"result {i} differs"
            continue
        if g.numel() == 0:
            continue
        error = (g.double() - t).abs().max().item()
        allowed = 2 * (s.double() - t).abs().max().item() + ATOL[g.dtype] * max(1.0, t.abs().max().item())
        assert error <= allowed, f"result {i}: error {error:.3e}, allowed {allowed:.3e}"
