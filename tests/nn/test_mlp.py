# SPDX-License-Identifier: Apache-2.0
"""The fused feed-forward op, and when the module uses it."""

import pytest
import torch

from vision_accel import _C, nn, ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ACTIVATIONS = ["none", "gelu", "gelu_tanh", "quick_gelu", "silu"]


def case(rows, k, m, n, dtype=torch.float32, activation="gelu", extras=True):
    def randn(*shape):
        return torch.randn(shape).to(dtype)

    return (
        randn(rows, k),
        (randn(m, k) / k**0.5),
        randn(m),
        (randn(n, m) / m**0.5),
        randn(n),
        activation,
        randn(rows, n) if extras else None,
        randn(n) if extras else None,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_accuracy(isa, dtype, activation):
    assert_accurate(ops.mlp, reference.mlp, case(37, 24, 50, 17, dtype, activation))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gpu_kernels_in_the_emulator(dtype):
    if not hasattr(_C, "set_simt_mode"):
        pytest.skip("this build has no VISION_ACCEL_SIMT")
    args = case(11, 16, 24, 9, dtype)
    _C.set_simt_mode(True)
    try:
        assert_accurate(ops.mlp, reference.mlp, args)
    finally:
        _C.set_simt_mode(False)


def test_gradients_that_are_not_needed():
    x, w1, b1, w2, b2, *_ = case(5, 6, 7, 8)
    for t in (w1, w2):
        t.requires_grad_()
    ours = torch.autograd.grad(ops.mlp(x, w1, b1, w2, b2).sum(), (w1, w2))
    theirs = torch.autograd.grad(reference.mlp(x, w1, b1, w2, b2).sum(), (w1, w2))
    torch.testing.assert_close(ours, theirs)
    frozen = w1.detach()
    x.requires_grad_()
    ours = torch.autograd.grad(ops.mlp(x, frozen, None, w2, None).sum(), (x, w2))
    theirs = torch.autograd.grad(reference.mlp(x, frozen, None, w2, None).sum(), (x, w2))
    torch.testing.assert_close(ours, theirs)


def test_gradcheck_opcheck_and_compile():
    args = case(3, 4, 5, 6, torch.float64)
    leaves = [a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
    x, w1, b1, w2, b2, activation, r, s = leaves
    tensors = (x, w1, b1, w2, b2, r, s)
    assert torch.autograd.gradcheck(
        lambda x, w1, b1, w2, b2, r, s: ops.mlp(x, w1, b1, w2, b2, activation, r, s), tensors
    )
    torch.library.opcheck(torch.ops.vision_accel.mlp.default, (x, w1, b1, w2, b2, r, s, activation, True))
    compiled = torch.compile(lambda *a: ops.mlp(*a).relu(), fullgraph=True, backend="aot_eager")
    assert_accurate(compiled, lambda *a: reference.mlp(*a).relu(), case(4, 16, 32, 8))


def test_autocast_and_a_wide_residual():
    x, w1, b1, w2, b2, activation, r, s = (
        a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in case(4, 16, 32, 8)
    )
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.mlp(x, w1, b1, w2, b2, activation, r, s)
        two = ops.linear(ops.linear(x, w1, b1, activation), w2, b2, residual=r, scale=s)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, two)
    ours, theirs = (torch.autograd.grad(v.sum(), (x, w1, b1, w2, b2, r, s)) for v in (y, two))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 0.02 * b.abs().max()


@pytest.mark.parametrize("wrong", [1, 2, 3, 4, 6, 7])
def test_bad_shapes(wrong):
    args = [a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in case(4, 16, 32, 8)]
    args[wrong] = args[wrong].detach()[1:].requires_grad_()
    with pytest.raises(ValueError, match=r"linear: .* must be"):
        ops.mlp(*args)


def test_the_module_lets_hooks_and_replaced_layers_have_their_way():
    mlp = nn.Mlp(6, 12)
    x = torch.randn(3, 6)
    expected = mlp.fc2(mlp.fc1(x, activation="gelu"))
    torch.testing.assert_close(mlp(x), expected)
    seen = []
    handle = mlp.fc1.register_forward_hook(lambda *_: seen.append("fc1"))
    torch.testing.assert_close(mlp(x), expected)
    assert seen == ["fc1"]
    handle.remove()

    class Doubled(nn.Linear):
        def forward(self, x, *args, **kwargs):
            return 2 * super().forward(x, *args, **kwargs)

    mlp.fc2.__class__ = Doubled
    torch.testing.assert_close(mlp(x), 2 * expected)
