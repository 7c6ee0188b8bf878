# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from bench.common import Workload
from vision_accel import ops
from vision_accel.testing import reference

CASES = {
    "vit_b16 batch 1": {"batch": 1, "patch": 16},
    "vit_b16 batch 8": {"batch": 8, "patch": 16},
    "vit_b16 batch 8 channels_last": {"batch": 8, "patch": 16, "channels_last": True},
    "clip_l14 batch 8": {"batch": 8, "patch": 14},
    "vit_b16 batch 8 backward": {"batch": 8, "patch": 16, "backward": True},
}


def make(batch: int, patch: int, channels_last: bool = False, backward: bool = False) -> Workload:
    x = torch.randn(batch, 3, 224, 224)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    if not backward:
        return Workload(
            ours=lambda: ops.patchify(x, patch),
            # unfold returns [B, K, L]; the copy gives it the order that a GEMM reads
            peers={"torch": lambda: reference.patchify(x, patch).contiguous()},
            bytes=4 * x.numel() * 2,
        )
    x.requires_grad_()
    ours, theirs = ops.patchify(x, patch), reference.patchify(x, patch)
    dy = torch.randn_like(ours)
    return Workload(
        ours=lambda: torch.autograd.grad(ours, x, dy, retain_graph=True),
        peers={"torch": lambda: torch.autograd.grad(theirs, x, dy, retain_graph=True)},
        bytes=4 * x.numel() * 2,
    )


@pytest.mark.parametrize("case", CASES)
def bench_patchify(measure, case):
    measure(make(**CASES[case]))
