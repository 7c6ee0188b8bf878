# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from bench.common import Workload
from vision_accel import ops
from vision_accel.testing import reference

# [rows, channels] of the MLP of ViT-B/16, 8 images of 224 pixels.
CASES = {
    f"{kind}{' backward' if backward else ''}": {"kind": kind, "backward": backward}
    for kind in ("gelu", "gelu_tanh", "quick_gelu", "silu")
    for backward in (False, True)
}


def make(kind: str, backward: bool) -> Workload:
    x = torch.randn(1576, 3072)
    if not backward:
        return Workload(
            ours=lambda: ops.activation(x, kind),
            peers={"torch": lambda: reference.activation(x, kind)},
            bytes=4 * x.numel() * 2,
        )
    x.requires_grad_()
    dy = torch.randn_like(x)
    ours, theirs = ops.activation(x, kind), reference.activation(x, kind)
    return Workload(
        ours=lambda: torch.autograd.grad(ours, x, dy, retain_graph=True),
        peers={"torch": lambda: torch.autograd.grad(theirs, x, dy, retain_graph=True)},
        bytes=4 * x.numel() * 3,
    )


@pytest.mark.parametrize("case", CASES)
def bench_activation(measure, case):
    measure(make(**CASES[case]))
