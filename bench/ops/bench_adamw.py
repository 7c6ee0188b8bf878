# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from bench.common import Workload
from vision_accel import ops
from vision_accel.testing import reference

# Width and depth of ViTs; "norm" is the gradient norm that clipping needs.
CASES = {
    "vit_ti16": {"dim": 192, "depth": 12},
    "vit_b16": {"dim": 768, "depth": 12},
    "vit_b16 norm": {"dim": 768, "depth": 12, "norm": True},
}
OPTIONS = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.05}


def shapes(dim: int, depth: int) -> list[tuple[int, ...]]:
    linears = [(3 * dim, dim), (dim, dim), (4 * dim, dim), (dim, 4 * dim)]
    block = [*linears, *((s[0],) for s in linears), *[(dim,)] * 4]
    return [(dim, 3, 16, 16), (dim,), (1, 197, dim), *block * depth, (dim,), (dim,), (1000, dim), (1000,)]


def make(dim: int, depth: int, norm: bool = False) -> Workload:
    params = [torch.randn(s) for s in shapes(dim, depth)]
    grads = [torch.randn_like(p) for p in params]
    count = sum(p.numel() for p in params)
    if norm:
        return Workload(
            ours=lambda: ops.grad_norm(grads),
            peers={"torch": lambda: reference.grad_norm(grads)},
            bytes=4 * count,
        )
    m, v = [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params]
    theirs = [p.clone() for p in params]
    optimizer = torch.optim.AdamW(theirs, fused=True, **OPTIONS)
    for p, g in zip(theirs, grads, strict=True):
        p.grad = g
    steps = 0

    def step_ours():
        nonlocal steps
        steps += 1
        ops.adamw(params, grads, m, v, step=steps, **OPTIONS)
        return params[:4]

    def step_torch():
        optimizer.step()
        return theirs[:4]

    return Workload(ours=step_ours, peers={"torch fused": step_torch}, bytes=4 * count * 7)


@pytest.mark.parametrize("case", CASES)
def bench_adamw(measure, case):
    measure(make(**CASES[case]))
