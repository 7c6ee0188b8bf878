# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from bench.common import Workload
from vision_accel import ops
from vision_accel.testing import reference

# [rows, channels] of ViT-S/16 and ViT-B/16 at 224 pixels.
CASES = {
    "vit_s16 batch 1": {"rows": 197, "dim": 384},
    "vit_b16 batch 1": {"rows": 197, "dim": 768},
    "vit_b16 batch 8": {"rows": 1576, "dim": 768},
    "vit_b16 batch 8 + residual": {"rows": 1576, "dim": 768, "residual": True},
    "vit_b16 batch 8 backward": {"rows": 1576, "dim": 768, "backward": True},
}


def make(rows: int, dim: int, residual: bool = False, backward: bool = False) -> Workload:
    x, w, b = torch.randn(rows, dim), torch.randn(dim), torch.randn(dim)
    r = torch.randn(rows, dim) if residual else None
    if not backward:
        return Workload(
            ours=lambda: ops.layer_norm(x, w, b, residual=r),
            peers={"torch": lambda: reference.layer_norm(x, w, b, residual=r)},
            bytes=4 * x.numel() * (4 if residual else 2),
        )
    leaves = [t.requires_grad_() for t in (x, w, b)]
    dy = torch.randn(rows, dim)
    return Workload(
        ours=lambda: torch.autograd.grad(ops.layer_norm(x, w, b), leaves, dy),
        peers={"torch": lambda: torch.autograd.grad(reference.layer_norm(x, w, b), leaves, dy)},
        bytes=4 * x.numel() * 5,
    )


@pytest.mark.parametrize("case", CASES)
def bench_layer_norm(measure, case):
    measure(make(**CASES[case]))
