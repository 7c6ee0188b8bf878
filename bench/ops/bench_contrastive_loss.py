# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.nn import functional as F

from bench.common import Workload
from vision_accel import ops
from vision_accel.testing import reference

CASES = {
    "softmax, 4096 pairs of 512": {"batch": 4096},
    "sigmoid, 4096 pairs of 512": {"batch": 4096, "bias": -5.0},
    "softmax, 1024 pairs of 512": {"batch": 1024},
}


def make(batch: int, bias: float | None = None) -> Workload:
    x, y = (F.normalize(torch.randn(batch, 512), dim=-1).requires_grad_() for _ in range(2))
    scalars = [torch.tensor(v, requires_grad=True) for v in (20.0, bias) if v is not None]

    def step(contrastive_loss):
        loss = contrastive_loss(x, y, *scalars)
        return loss.detach(), torch.autograd.grad(loss, [x, y, *scalars])

    # Three products of all pairs are needed at least; ours computes the logits once more in backward.
    return Workload(
        ours=lambda: step(ops.contrastive_loss),
        peers={"torch, all logits at once": lambda: step(reference.contrastive_loss)},
        flops=3 * 2.0 * batch * batch * 512,
        images=batch,
    )


@pytest.mark.parametrize("case", CASES)
def bench_contrastive_loss(measure, case):
    measure(make(**CASES[case]))
