# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from vision_accel import ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KINDS = ["gelu", "gelu_tanh", "quick_gelu", "silu"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_matches_reference(isa, kind, dtype):
    for shape in ((3, 257), (1,), (), (40_001,)):
        x = torch.randn(shape, dtype=torch.float64).mul(4).to(dtype)
        assert_accurate(ops.activation, reference.activation, (x, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_tails_keep_their_relative_accuracy(isa, kind):
    x = torch.linspace(-9, 9, 20_001)
    exact = {
        "gelu": lambda v: v * 0.5 * torch.erfc(-v / math.sqrt(2)),
        "gelu_tanh": lambda v: v * torch.sigmoid(math.sqrt(8 / math.pi) * (v + 0.044715 * v**3)),
    }.get(kind, lambda v: reference.activation(v, kind))
    torch.testing.assert_close(ops.activation(x, kind).double(), exact(x.double()), rtol=2e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_values(isa, kind, dtype):
    inf, big = math.inf, torch.finfo(dtype).max
    x = torch.tensor([inf, -inf, big, -big, 0.0, math.nan], dtype=dtype, requires_grad=True)
    y = ops.activation(x, kind)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert y.tolist()[:5] == [inf, 0, big, 0, 0]
    assert y[5].isnan()
    assert dx.tolist()[:5] == [1, 0, 1, 0, 0.5]
    assert dx[5].isnan()


def test_none_is_the_identity():
    x = torch.randn(3)
    assert ops.activation(x, "none") is x


def test_any_layout():
    base = torch.randn(4, 6, 8, 10)
    channels_last = base.to(memory_format=torch.channels_last)
    for x in (channels_last, base.transpose(0, 2), base[:, ::2], base[..., 1:], base[:1].expand(4, 6, 8, 10)):
        assert_accurate(ops.activation, reference.activation, (x, "gelu"))
    assert ops.activation(channels_last, "gelu").is_contiguous(memory_format=torch.channels_last)


def test_gradient_of_another_layout():
    x = torch.randn(5, 7, requires_grad=True)
    dy = torch.randn(7, 5).t()
    (ours,) = torch.autograd.grad(ops.activation(x, "silu"), x, dy)
    (expected,) = torch.autograd.grad(reference.activation(x, "silu"), x, dy)
    torch.testing.assert_close(ours, expected)
    (ours,) = torch.autograd.grad(ops.activation(x, "silu").sum(), x)  # dy is expanded
    (expected,) = torch.autograd.grad(reference.activation(x, "silu").sum(), x)
    torch.testing.assert_close(ours, expected)


def test_empty():
    x = torch.zeros(0, 3, requires_grad=True)
    ops.activation(x, "gelu").sum().backward()
    assert x.grad.shape == (0, 3)


def test_same_bits_for_any_threads_and_position(isa):
    x = torch.randn(100_003)
    threads = torch.get_num_threads()
    results = []
    for n in (1, 2):
        torch.set_num_threads(n)
        results.append(ops.activation(x, "gelu"))
    torch.set_num_threads(threads)
    assert torch.equal(*results)
    assert torch.equal(ops.activation(x[5:1234], "gelu"), results[0][5:1234])


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    x = torch.randn(23, dtype=torch.float64).mul(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.activation(x, kind), x)


def test_opcheck():
    for x in (torch.randn(3, 5), torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last)):
        torch.library.opcheck(torch.ops.vision_accel.activation.default, (x.requires_grad_(), "gelu"))


def test_compiles_whole():
    compiled = torch.compile(lambda x: ops.activation(x, "gelu") + 1, fullgraph=True, backend="aot_eager")
    assert_accurate(compiled, lambda x: reference.activation(x, "gelu") + 1, (torch.randn(4, 9),))


def test_bad_input():
    with pytest.raises(ValueError, match=r"activation: kind must be none, gelu, .*, got 'relu'"):
        ops.activation(torch.ones(3), "relu")
    with pytest.raises(TypeError, match=r"activation: x must be float32 or .*, got int64"):
        ops.activation(torch.ones(3).long(), "gelu")
