# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from bench.common import Workload
from vision_accel import ops
from vision_accel.testing import reference

# Pixels and channels of Stable Diffusion's decoder for a latent of 32 x 32; 32 groups, SiLU behind.
CASES = {
    "512, 32 px": {"size": 32, "c": 512},
    "256, 128 px": {"size": 128, "c": 256},
    "128, 256 px": {"size": 256, "c": 128},
    "128, 256 px, backward": {"size": 256, "c": 128, "backward": True},
}


def make(size: int, c: int, backward: bool = False) -> Workload:
    x, weight, bias = leaves = torch.randn(1, size, size, c), torch.randn(c), torch.randn(c)
    for t in leaves:
        t.requires_grad_(backward)
    dy = torch.randn_like(x)

    def call(module):
        return lambda: module.group_norm(x, 32, weight, bias, 1e-6, "silu")

    if not backward:  # x is read twice, y written
        return Workload(call(ops), {"torch": call(reference)}, bytes=12.0 * x.numel())

    def grads(module):
        y = call(module)()
        return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)

    return Workload(grads(ops), {"torch": grads(reference)}, bytes=20.0 * x.numel())


@pytest.mark.parametrize("case", CASES)
def bench_group_norm(measure, case):
    measure(make(**CASES[case]))
