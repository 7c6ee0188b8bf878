# SPDX-License-Identifier: Apache-2.0
"""The contrastive losses' CUDA kernels at small sizes, under the accuracy rule."""

import pytest
import torch

from tests.ops import test_contrastive_loss as cpu
from vision_accel import ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate


@cpu.KINDS
@pytest.mark.parametrize("dtype", cpu.DTYPES, ids=str)
def test_equals_the_plain_loss(dtype, bias):
    for batch, width in cpu.SIZES if dtype == torch.float32 else [(2, 3), (40, 24)]:
        args = cpu.inputs(batch, width, bias, dtype)
        assert_accurate(ops.contrastive_loss, reference.contrastive_loss, args)


@cpu.KINDS
def test_parts_and_emptiness(bias):
    cpu.test_parts_of_a_batch_make_the_whole(None, bias)
    cpu.test_no_images_no_texts_no_width(None, bias)


@cpu.KINDS
def test_large_logits(bias):
    args = cpu.inputs(50, 24, bias, scale=100.0)
    args[1] = args[0]
    assert_accurate(ops.contrastive_loss, reference.contrastive_loss, args)


def test_small_sigmoid_losses_keep_their_digits():
    cpu.test_small_sigmoid_losses_keep_their_digits(None)
