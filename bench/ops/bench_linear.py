# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from bench.common import Workload
from vision_accel import ops
from vision_accel.testing import reference

# Rows, output and input features of the products of ViT-B/16 at 224 pixels, batches of 1 and 8.
SHAPES = {
    "qkv": {"n": 2304, "k": 768},
    "proj + scale + residual": {"n": 768, "k": 768, "scale": True, "residual": True},
    "fc1 + gelu": {"n": 3072, "k": 768, "activation": "gelu"},
    "fc2 + residual": {"n": 768, "k": 3072, "residual": True},
}
CASES = (
    {f"{name}, batch {b}": {"m": 197 * b, **shape} for b in (1, 8) for name, shape in SHAPES.items()}
    | {"head, batch 1": {"m": 1, "n": 1000, "k": 768}, "head, batch 8": {"m": 8, "n": 1000, "k": 768}}
    | {
        f"{name}, batch 8, {mode}": {"m": 1576, **SHAPES[name], mode: True}
        for name in ("qkv", "fc1 + gelu", "fc2 + residual")
        for mode in ("training", "backward")
    }
    | {"fc1 + gelu, batch 8, bfloat16": {"m": 1576, **SHAPES["fc1 + gelu"], "dtype": torch.bfloat16}}
)


def make(
    m: int,
    n: int,
    k: int,
    activation: str = "none",
    scale: bool = False,
    residual: bool = False,
    training: bool = False,
    backward: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Workload:
    x, weight, bias = torch.randn(m, k), torch.randn(n, k) / k**0.5, torch.randn(n)
    s = torch.randn(n).to(dtype) if scale else None
    r = torch.randn(m, n).to(dtype) if residual else None
    x, weight, bias = leaves = [t.to(dtype).requires_grad_(training or backward) for t in (x, weight, bias)]
    flops = 2.0 * m * n * k
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2

    def call(fn):
        return lambda: fn(x, weight, bias, activation, r, s)

    if not backward:
        return Workload(call(ops.linear), {"torch": call(reference.linear)}, flops=flops, tolerance=tolerance)
    dy = torch.randn(m, n)

    def grads(fn):
        y = call(fn)()
        return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)

    return Workload(
        grads(ops.linear), {"torch": grads(reference.linear)}, flops=2 * flops, tolerance=tolerance
    )


@pytest.mark.parametrize("case", CASES)
def bench_linear(measure, case):
    measure(make(**CASES[case]))
