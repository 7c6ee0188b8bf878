# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vision_accel import ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def case(shape, groups, dtype=torch.float32, activation="none"):
    x = torch.randn(shape, dtype=torch.float64).mul(2).add(0.5).to(dtype)
    w, b = torch.randn(shape[-1]).to(dtype), torch.randn(shape[-1]).to(dtype)
    return x, groups, w, b, 1e-6, activation


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 5, 7, 64), 32), ((1, 40, 40, 128), 32), ((3, 33), 3), ((2, 9, 48), 16), ((1, 3, 3, 6), 6)],
    ids=str,
)
def test_matches_reference(isa, shape, groups, dtype):
    for activation in ("none", "silu"):
        assert_accurate(ops.group_norm, reference.group_norm, case(shape, groups, dtype, activation))


def test_many_channels(isa):
    assert_accurate(ops.group_norm, reference.group_norm, case((1, 3, 20_000), 4))


def test_large_mean_does_not_cancel(isa):
    x, *rest = case((2, 30, 30, 64), 8)
    assert_accurate(ops.group_norm, reference.group_norm, (x + 1e4, *rest), grads=False)


@pytest.mark.parametrize("value", [0.1, 1234.567])
def test_equal_values_have_no_variance(isa, value):
    x = torch.full((2, 70, 33, 12), value)
    assert not ops.group_norm(x, 4, torch.ones(12), torch.zeros(12), 1e-12).any()


def test_non_contiguous(isa):
    base = torch.randn(4, 10, 6, 12)
    for x in (base[:, ::2], base.transpose(1, 2), base[..., ::2], base.permute(0, 2, 3, 1)):
        c = x.shape[-1]
        assert_accurate(ops.group_norm, reference.group_norm, (x, 2, torch.randn(c), torch.randn(c)))


@pytest.mark.parametrize("shape", [(0, 4, 8), (2, 0, 8), (3, 2, 0, 8)], ids=str)
def test_empty(shape):
    x, w = torch.zeros(shape, requires_grad=True), torch.ones(8, requires_grad=True)
    y = ops.group_norm(x, 2, w, w)
    y.sum().backward()
    assert y.shape == x.shape
    assert torch.equal(w.grad, torch.zeros_like(w))


def test_an_image_is_independent_of_the_batch_and_of_threads(isa):
    x, groups, w, b, eps, activation = case((3, 50, 41, 32), 8, activation="silu")
    dy = torch.randn_like(x)
    results = []
    threads = torch.get_num_threads()
    for n in (1, 2):
        torch.set_num_threads(n)
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        y = ops.group_norm(leaves[0], groups, *leaves[1:], eps, activation)
        y.backward(dy)
        results.append([y.detach(), *(t.grad for t in leaves)])
    torch.set_num_threads(threads)
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))
    assert torch.equal(results[0][0][1:2], ops.group_norm(x[1:2], groups, w, b, eps, activation))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_wide_input(isa, dtype):
    """A float32 image whose values 16 bits cannot hold, with 16-bit parameters and result."""
    x, groups, w, b, eps, _ = case((2, 9, 64), 8)
    x, w, b = x * 1e6, w.to(dtype), b.to(dtype)
    want = reference.group_norm(x, groups, w.float(), b.float(), eps, "silu")
    y = ops.group_norm(x, groups, w, b, eps, "silu")
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), want, rtol=1e-2, atol=1e-2)
    x.requires_grad_()
    ops.group_norm(x, groups, w, b, eps, "silu").float().sum().backward()
    assert x.grad.dtype == torch.float32


def test_statistics():
    x, groups, w, b, eps, activation = case((2, 12, 12, 32), 4, activation="silu")
    mean, variance = ops.group_norm_statistics(x, groups)
    grouped = x.unflatten(-1, (groups, -1)).movedim(-2, 1).flatten(2).double()
    torch.testing.assert_close(mean, grouped.mean(2).float())
    torch.testing.assert_close(variance, grouped.var(2, correction=0).float())
    whole = ops.group_norm(x, groups, w, b, eps, activation)
    part = ops.group_norm(x[:, 3:7, 2:], groups, w, b, eps, activation, statistics=(mean, variance))
    out = torch.empty(part.shape)
    ops.group_norm(x[:, 3:7, 2:], groups, w, b, eps, activation, statistics=(mean, variance), out=out)
    assert torch.equal(out, part)
    with pytest.raises(ValueError, match="out is for given statistics only"):
        ops.group_norm(x, groups, w, b, out=torch.empty_like(x))
    assert torch.equal(part, whole[:, 3:7, 2:])


def test_nan_stays_in_its_group():
    x, groups, w, b, eps, _ = case((2, 6, 8), 2)
    x[1, 3, 6] = float("nan")
    y = ops.group_norm(x, groups, w, b, eps)
    assert y[1, :, 4:].isnan().all()
    assert not y[1, :, :4].isnan().any()
    assert not y[0].isnan().any()


def test_gradcheck():
    x, groups, w, b, eps, _ = case((2, 3, 6), 3, torch.float64)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    for activation in ("none", "silu", "gelu"):
        assert torch.autograd.gradcheck(
            lambda x, w, b, activation=activation: ops.group_norm(x, groups, w, b, eps, activation), leaves
        )


def test_opcheck():
    x, groups, w, b, eps, _ = case((2, 3, 4, 8), 2)
    args = (x.requires_grad_(), w.requires_grad_(), b, groups, eps, "silu")
    torch.library.opcheck(torch.ops.vision_accel.group_norm.default, args)
    torch.library.opcheck(torch.ops.vision_accel.group_norm_statistics.default, (x.detach(), groups))


def test_compiles_whole():
    args = case((2, 3, 3, 8), 2, activation="silu")
    compiled = torch.compile(ops.group_norm, fullgraph=True, backend="aot_eager")
    assert_accurate(compiled, reference.group_norm, args)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.ones(5)}, ValueError, r"group_norm: weight must be \[4\], got \[5\]"),
        ({"bias": torch.ones(4, 1)}, ValueError, r"group_norm: bias must be \[4\], got \[4, 1\]"),
        ({"weight": torch.ones(4).double()}, TypeError, "float64"),
        ({"x": torch.ones(1, 3, 4).int()}, TypeError, "group_norm: x must be float32 or .*, got int32"),
        ({"x": torch.ones(4)}, ValueError, r"x must be \[B, ..., C\], got \[4\]"),
        ({"groups": 3}, ValueError, "groups must divide the 4 channels, got 3"),
        ({"groups": 0}, ValueError, "groups must divide the 4 channels, got 0"),
        ({"activation": "relu"}, ValueError, "activation must be none, gelu"),
    ],
)
def test_bad_input(change, error, message):
    args = {"x": torch.ones(1, 3, 4), "groups": 2, "weight": torch.ones(4), "bias": torch.ones(4)} | change
    with pytest.raises(error, match=message):
        ops.group_norm(**args)
