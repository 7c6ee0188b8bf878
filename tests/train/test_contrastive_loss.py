# SPDX-License-Identifier: Apache-2.0
"""The losses in rows against the plain ones with the whole matrix."""

import pytest
import torch
from torch.nn import functional as F

from vision_accel.train.contrastive_loss import contrastive_loss


def plain(x, y, scale, bias=None):
    logits = scale * x @ y.T
    if bias is None:
        labels = torch.arange(len(x))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    signs = 2 * torch.eye(len(x), dtype=x.dtype) - 1
    return -F.logsigmoid(signs * (logits + bias)).sum() / len(x)


def inputs(batch, width=24, bias=False, dtype=torch.float32):
    x, y = (F.normalize(torch.randn(batch, width, dtype=dtype), dim=-1).requires_grad_() for _ in range(2))
    scale = torch.tensor(20.0, dtype=dtype, requires_grad=True)
    return [x, y, scale, *([torch.tensor(-5.0, dtype=dtype, requires_grad=True)] if bias else [])]


def gradients(loss, tensors):
    return torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 7, 64, 65])
@pytest.mark.parametrize("chunk", [1, 16, 256])
def test_equals_the_plain_loss(batch, chunk, bias):
    tensors = inputs(batch, bias=bias)
    ours, expected = contrastive_loss(*tensors, chunk=chunk), plain(*tensors)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients(3 * ours, tensors), gradients(3 * expected, tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_large_logits_do_not_overflow(bias):
    tensors = inputs(40, bias=bias)
    with torch.no_grad():
        tensors[2].fill_(100.0)
        tensors[1].copy_(tensors[0])
    loss = contrastive_loss(*tensors, chunk=16)
    torch.testing.assert_close(loss, plain(*tensors), rtol=1e-4, atol=1e-5)
    assert all(g.isfinite().all() for g in gradients(loss, tensors))


def test_16_bit_embeddings_are_computed_in_float32():
    tensors = inputs(33)
    low = [t.detach().bfloat16().requires_grad_() for t in tensors]
    wide = [t.detach().float().requires_grad_() for t in low]
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(*low)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain(*wide), rtol=1e-5, atol=1e-6)
    assert gradients(loss, low)[0].dtype == torch.bfloat16


def test_memory_stays_small(monkeypatch):
    """No tensor of the size of all logits is ever made."""
    batch, chunk = 512, 32
    tensors = inputs(batch)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(t, torch.Tensor):
                    largest = max(largest, t.untyped_storage().nbytes() // t.element_size())
            return out

    with Watch():
        contrastive_loss(*tensors, chunk=chunk).backward()
    assert 0 < largest <= batch * max(chunk, 24)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"of one shape, got \[2, 3\] and \[3, 3\]"):
        contrastive_loss(torch.zeros(2, 3), torch.zeros(3, 3), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"got \[0, 3\]"):
        contrastive_loss(torch.zeros(0, 3), torch.zeros(0, 3), torch.tensor(1.0))
