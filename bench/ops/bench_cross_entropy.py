# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from bench.common import Workload
from vision_accel import ops
from vision_accel.testing import reference

CASES = {
    "imagenet batch 64": {"batch": 64, "classes": 1000},
    "imagenet batch 256": {"batch": 256, "classes": 1000},
    "imagenet batch 256 smoothing": {"batch": 256, "classes": 1000, "smoothing": 0.1},
    "imagenet batch 256 mixup": {"batch": 256, "classes": 1000, "soft": True},
    "clip batch 1024": {"batch": 1024, "classes": 1024},
}


def make(batch: int, classes: int, smoothing: float = 0.0, soft: bool = False) -> Workload:
    x = torch.randn(batch, classes, requires_grad=True)
    target = torch.rand(batch, classes).softmax(-1) if soft else torch.randint(classes, (batch,))

    def step(cross_entropy):
        loss = cross_entropy(x, target, smoothing)
        return loss, *torch.autograd.grad(loss, x)

    return Workload(
        ours=lambda: step(ops.cross_entropy),
        peers={"torch": lambda: step(reference.cross_entropy)},
        bytes=4 * x.numel() * (4 if soft else 3),
    )


@pytest.mark.parametrize("case", CASES)
def bench_cross_entropy(measure, case):
    measure(make(**CASES[case]))
