# SPDX-License-Identifier: Apache-2.0
"""The losses of a batch that is spread over processes equal that of the whole batch."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from vision_accel.testing import reference
from vision_accel.train.contrastive_loss import contrastive_loss

# Forks the processes after the costly import; every one writes its loss and gradients.
PROCESSES = """
import os, sys
import torch
import torch.distributed as dist
from vision_accel.train.contrastive_loss import contrastive_loss

folder, size = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
rank = next((r for r in range(1, size) if os.fork() == 0), 0)
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
found = []
for inputs in torch.load(f"{folder}/inputs.pt"):
    mine = [t.tensor_split(size)[rank] if t.ndim else t for t in inputs]
    mine = [t.clone().requires_grad_() for t in mine]
    loss = contrastive_loss(*mine)
    (2 * loss).backward()
    found.append([loss.detach(), *(t.grad for t in mine)])
torch.save(found, f"{folder}/{rank}.pt")
dist.barrier()
dist.destroy_process_group()
if rank:
    os._exit(0)
for _ in range(1, size):
    assert os.wait()[1] == 0
"""


def inputs(batch, width=24, bias=None, dtype=torch.float32):
    x, y = (F.normalize(torch.randn(batch, width, dtype=dtype), dim=-1) for _ in range(2))
    return [x, y, *(torch.tensor(v) for v in (20.0, bias) if v is not None)]


@pytest.mark.slow
def test_processes_equal_the_whole_batch(tmp_path):
    size, cases = 3, [inputs(12), inputs(12, bias=-5.0), inputs(3), inputs(3, bias=1.0), inputs(900, 5)]
    cases += [[t.bfloat16() if t.ndim else t for t in case] for case in cases[:2]]
    torch.save(cases, tmp_path / "inputs.pt")
    command = [sys.executable, "-c", PROCESSES, str(tmp_path), str(size)]
    subprocess.run(command, check=True, timeout=120)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(size)]
    for i, case in enumerate(cases):
        leaves = [t.clone().requires_grad_() for t in case]
        loss = reference.contrastive_loss(*leaves)
        (2 * loss).backward()
        parts = list(zip(*(f[i] for f in found), strict=True))
        tolerance = (
            {"rtol": 1e-4, "atol": 1e-6} if case[0].dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-3}
        )
        torch.testing.assert_close(torch.stack(parts[0]).mean(), loss.detach(), rtol=1e-4, atol=1e-6)
        for leaf, grads in zip(leaves, parts[1:], strict=True):
            # DistributedDataParallel averages what weights get: the loss counts as the mean over processes.
            whole = torch.cat(grads) / size if leaf.ndim else torch.stack(grads).mean()
            torch.testing.assert_close(whole, leaf.grad, **tolerance)


@pytest.mark.parametrize("bias", [None, -5.0])
def test_one_process_is_the_plain_loss(bias):
    case = inputs(7, bias=bias)
    torch.testing.assert_close(contrastive_loss(*case), reference.contrastive_loss(*case))


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"of one shape, B > 0, got \[2, 3\] and \[3, 3\]"):
        contrastive_loss(torch.zeros(2, 3), torch.zeros(3, 3), torch.tensor(1.0))
