# SPDX-License-Identifier: Apache-2.0
"""group_norm's CUDA kernels at small sizes, under the accuracy rule."""

import pytest
import torch

from tests.ops.test_group_norm import case
from vision_accel import ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 3, 5, 64), 32), ((1, 33, 1040), 4), ((3, 3, 33), 3), ((2, 9, 48), 16), ((1, 2, 2, 6), 6)],
    ids=str,
)
def test_matches_reference(shape, groups, dtype):
    assert_accurate(ops.group_norm, reference.group_norm, case(shape, groups, dtype, "silu"))


def test_more_channels_than_threads():
    assert_accurate(ops.group_norm, reference.group_norm, case((1, 5, 2056), 257))


def test_misaligned():
    x, groups, w, b, *_ = case((2, 4, 16), 4)
    w, b = (torch.cat([torch.zeros(1), t])[1:] for t in (w, b))
    assert_accurate(ops.group_norm, reference.group_norm, (x, groups, w, b))


def test_large_mean_does_not_cancel():
    x, *rest = case((1, 30, 9, 64), 8)
    assert_accurate(ops.group_norm, reference.group_norm, (x + 1e4, *rest), grads=False)


@pytest.mark.parametrize("shape", [(0, 4, 8), (2, 0, 8)], ids=str)
def test_empty(shape):
    x, w = torch.zeros(shape, requires_grad=True), torch.ones(8, requires_grad=True)
    ops.group_norm(x, 2, w, w).sum().backward()
    assert torch.equal(w.grad, torch.zeros_like(w))


def test_an_image_is_independent_of_the_batch():
    x, groups, w, b, eps, activation = case((2, 70, 512), 32, activation="silu")  # three parts
    whole = ops.group_norm(x, groups, w, b, eps, activation)
    assert torch.equal(whole[1:], ops.group_norm(x[1:], groups, w, b, eps, activation))


def test_wide_input():
    x, groups, w, b, eps, _ = case((2, 9, 64), 8)
    x, w, b = x * 1e6, w.bfloat16(), b.bfloat16()
    x.requires_grad_()
    want = reference.group_norm(x.double(), groups, w.double(), b.double(), eps, "silu")
    y = ops.group_norm(x, groups, w, b, eps, "silu")
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), want, rtol=1e-2, atol=1e-2)
    got, truth = (torch.autograd.grad(t.double().sum(), x)[0] for t in (y, want))
    torch.testing.assert_close(got, truth, rtol=2e-2, atol=1e-9)


def test_too_many_channels():
    with pytest.raises(ValueError, match=r"group_norm: at most .* channels on a GPU, got 20000"):
        ops.group_norm(torch.zeros(1, 1, 20_000), 2, torch.zeros(20_000), torch.zeros(20_000))
