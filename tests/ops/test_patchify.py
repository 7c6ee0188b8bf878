# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vision_accel import ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "patch"),
    [((2, 3, 32, 48), 16), ((3, 1, 6, 4), (3, 2)), ((1, 5, 7, 7), 1), ((2, 2, 14, 14), 14)],
    ids=str,
)
def test_matches_reference(isa, shape, patch, dtype):
    x = torch.randn(shape).to(dtype)
    assert torch.equal(ops.patchify(x, patch), reference.patchify(x, patch))
    assert_accurate(ops.patchify, reference.patchify, (x, patch))


def test_order_is_that_of_a_convolution_weight():
    x, weight = torch.randn(2, 3, 8, 12), torch.randn(7, 3, 4, 4)
    expected = torch.nn.functional.conv2d(x, weight, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(ops.patchify(x, 4) @ weight.flatten(1).t(), expected)


def test_any_strides():
    base = torch.randn(4, 6, 12, 16)
    for x in (
        base.to(memory_format=torch.channels_last),
        base[:, ::2],
        base[..., ::2],
        base.transpose(2, 3),
        base[:1].expand(4, 6, 12, 16),
        base[:, :3, 2:10, 4:12],
        base[1:].flip(0),
    ):
        assert torch.equal(ops.patchify(x, 4), reference.patchify(x, 4))
        assert_accurate(ops.patchify, reference.patchify, (x, 4))


def test_backward_is_the_inverse(isa):
    x = torch.randn(3, 3, 32, 32, requires_grad=True)
    y = ops.patchify(x, 8)
    (dx,) = torch.autograd.grad(y, x, y.detach())
    assert torch.equal(dx, x)
    dy = torch.randn(y.shape[1], y.shape[0], y.shape[2]).transpose(0, 1)
    (ours,) = torch.autograd.grad(ops.patchify(x, 8), x, dy)
    (expected,) = torch.autograd.grad(reference.patchify(x, 8), x, dy)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8)], ids=str)
def test_empty(shape):
    x = torch.zeros(shape, requires_grad=True)
    y = ops.patchify(x, 4)
    assert y.shape == (shape[0], (shape[2] // 4) * 2, shape[1] * 16)
    y.sum().backward()
    assert x.grad.shape == shape


def test_many_images_with_any_threads():
    x = torch.randn(301, 3, 16, 16)
    threads = torch.get_num_threads()
    for n in (1, 2):
        torch.set_num_threads(n)
        assert torch.equal(ops.patchify(x, 4), reference.patchify(x, 4))
    torch.set_num_threads(threads)


def test_gradcheck():
    x = torch.randn(2, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.patchify(x, (2, 3)), x)


def test_opcheck():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    torch.library.opcheck(torch.ops.vision_accel.patchify.default, (x, 4, 2))


def test_compiles_whole_for_any_batch():
    compiled = torch.compile(
        lambda x: ops.patchify(x, 4) * 2, fullgraph=True, backend="aot_eager", dynamic=True
    )
    for batch in (2, 5):
        assert_accurate(compiled, lambda x: reference.patchify(x, 4) * 2, (torch.randn(batch, 3, 8, 8),))


@pytest.mark.parametrize(
    ("x", "patch", "error", "message"),
    [
        (torch.ones(1, 3, 30, 32), 16, ValueError, "divisible by the patch size 16 x 16, got 30 x 32"),
        (torch.ones(1, 3, 32, 30), (4, 7), ValueError, "divisible by the patch size 4 x 7, got 32 x 30"),
        (torch.ones(3, 32, 32), 16, ValueError, r"patchify: x must be \[B, C, h, w\], got \[3, 32, 32\]"),
        (torch.ones(1, 3, 32, 32), 0, ValueError, "patch_size must be positive"),
        (torch.ones(1, 3, 32, 32).byte(), 16, TypeError, "patchify: x must be float32 or .*, got uint8"),
    ],
)
def test_bad_input(x, patch, error, message):
    with pytest.raises(error, match=message):
        ops.patchify(x, patch)
