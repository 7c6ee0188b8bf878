# SPDX-License-Identifier: Apache-2.0
"""The contrastive losses on a GPU, under the accuracy rule; the matrix of logits is never whole in memory."""

import pytest
import torch

from tests.ops import test_contrastive_loss as cpu
from vision_accel import ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

pytestmark = pytest.mark.cuda


@cpu.KINDS
@pytest.mark.parametrize("dtype", cpu.DTYPES, ids=str)
@pytest.mark.parametrize("size", [*cpu.SIZES, (2048, 512)], ids=str)
def test_equals_the_plain_loss(size, dtype, bias):
    assert_accurate(ops.contrastive_loss, reference.contrastive_loss, cpu.inputs(*size, bias, dtype))


@cpu.KINDS
def test_parts_emptiness_and_large_logits(bias):
    cpu.test_parts_of_a_batch_make_the_whole(None, bias)
    cpu.test_no_images_no_texts_no_width(None, bias)
    cpu.test_large_logits(None, bias)


@cpu.KINDS
def test_repeats_give_the_same_bits(bias):
    args = [a.requires_grad_() for a in cpu.inputs(1000, 64, bias)]

    def run():
        loss = ops.contrastive_loss(*args)
        return [loss, *torch.autograd.grad(loss, args)]

    assert all(torch.equal(p, q) for p, q in zip(run(), run(), strict=True))


@cpu.KINDS
def test_memory(bias):
    """A tenth of what one matrix of logits takes, beside inputs and gradients."""
    pairs, width = 16384, 64
    args = [a.requires_grad_() for a in cpu.inputs(pairs, width, bias)]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(ops.contrastive_loss(*args), args)
    assert torch.cuda.max_memory_allocated() - before < 4 * pairs * pairs / 10
