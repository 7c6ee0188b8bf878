# SPDX-License-Identifier: Apache-2.0
"""Results written into memory that the caller has: ``out`` of the ops that have it."""

import pytest
import torch

from tests.ops.test_conv2d import DTYPES, case
from vision_accel import ops


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [7, 40])
def test_into_given_memory(isa, dtype, channels):
    """The same bits as without ``out``, also where that is the residual or part of a larger image."""
    x, w, b = (t.to(dtype) for t in case(2, 5, 6, channels, channels, 3))
    residual = torch.randn(2, 5, 6, channels).to(dtype)
    want = ops.conv2d(x, w, b, residual=residual, padding=1)
    version = residual._version
    assert ops.conv2d(x, w, b, residual=residual, padding=1, out=residual) is residual
    assert torch.equal(residual, want)
    assert residual._version > version  # autograd would notice
    large = torch.zeros(1, 14, 12, channels, dtype=dtype)
    ops.upsample_conv2d(x[:1], w, b, out=large[:, 2:12])
    assert torch.equal(large[:, 2:12], ops.upsample_conv2d(x[:1], w, b))
    assert not large[:, :2].any()
    assert not large[:, 12:].any()


def test_into_given_memory_when_watched():
    x, w, b = case(1, 5, 6, 8, 8, 3)
    out = torch.empty(1, 5, 6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        ops.conv2d(x, w, b, padding=1, out=out)
        want = ops.conv2d(x, w, b, padding=1, out_dtype=torch.float32)
    assert torch.equal(out, want)
    with torch.profiler.profile() as profile:
        ops.conv2d(x, w, b, padding=1, out=out)
    assert any(e.name == "vision_accel::conv2d" for e in profile.events())
    assert torch.equal(out, ops.conv2d(x, w, b, padding=1))


def test_bad_out():
    x, w, b = case(1, 5, 6, 8, 8, 3)
    with pytest.raises(ValueError, match=r"out must be \[1, 5, 6, 8\]"):
        ops.conv2d(x, w, b, padding=1, out=torch.empty(1, 5, 6, 9))
    with pytest.raises(ValueError, match="contiguous"):
        ops.upsample_conv2d(x, w, b, out=torch.empty(1, 12, 10, 8).transpose(1, 2))
    with pytest.raises(NotImplementedError, match="its gradient with out= is not supported"):
        ops.conv2d(x, w.requires_grad_(), b, padding=1, out=torch.empty(1, 5, 6, 8))
