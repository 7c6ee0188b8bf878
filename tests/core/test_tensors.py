# SPDX-License-Identifier: Apache-2.0
"""How Python tensors reach the core. patchify with patches of one pixel copies any strided image."""

import sys
import threading

import numpy as np
import pytest
import torch

from vision_accel import _C


def copy(x, like=None):
    """A contiguous torch copy of the 4-D ``x``, made by the core."""
    b, c, h, w = x.shape
    dtype = getattr(torch, str(x.dtype).removeprefix("torch.")) if like is None else like
    out = torch.full((b, h * w, c), 7, dtype=dtype)
    _C.patchify(x, out, 1, 1, 0)
    return out.reshape(b, h, w, c).permute(0, 3, 1, 2)


VIEWS = {
    "contiguous": lambda a: a,
    "sliced": lambda a: a[1:, :, ::2, 1:4],
    "transposed": lambda a: a.swapaxes(3, 1),
    "offset": lambda a: a[:, 2:3],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_torch(view, dtype):
    x = VIEWS[view](torch.randn(2, 3, 4, 5).to(dtype))
    assert torch.equal(copy(x), x)
    assert torch.equal(copy(x.requires_grad_()), x)
    assert torch.equal(copy(torch.nn.Parameter(x.detach())), x)


@pytest.mark.parametrize("view", [*VIEWS, "negative strides"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2"])
def test_numpy(view, dtype):
    a = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(dtype)
    a = a[::-1, :, ::-2] if view == "negative strides" else VIEWS[view](a)
    assert np.array_equal(copy(a).numpy(), a)
    a.flags.writeable = False
    assert np.array_equal(copy(a).numpy(), a)


def test_zero_dimensional():
    for x in (torch.tensor(1.0), np.array(1.0, "f4")):
        y = torch.zeros(())
        _C.activation_forward(x, y, "silu", 0)
        assert y.item() == pytest.approx(0.7310586)


class OnlyDLPack:
    """A tensor of some other library, which hands over a new capsule and keeps nothing itself."""

    def __init__(self, make):
        self.make = make

    def __dlpack__(self):
        return self.make().__dlpack__()


def test_an_object_that_only_speaks_dlpack():
    expected = torch.nn.functional.silu(torch.arange(100_000.0))
    y = torch.zeros(100_000)
    _C.activation_forward(OnlyDLPack(lambda: torch.arange(100_000.0)), y, "silu", 0)
    torch.testing.assert_close(y, expected)
    with pytest.raises(TypeError, match=r"activation: y must be float32, got int64"):
        _C.activation_forward(
            torch.zeros(3), OnlyDLPack(lambda: torch.zeros(3, dtype=torch.int64)), "silu", 0
        )

    def broken():
        raise RuntimeError("no such tensor")

    with pytest.raises(TypeError, match=r"cannot read this .*OnlyDLPack: RuntimeError: no such tensor"):
        _C.activation_forward(OnlyDLPack(broken), y, "silu", 0)


def test_arguments_are_released_again():
    a, b = np.zeros(10, "f4"), np.zeros(10, "f4")
    x, y = torch.zeros(10), torch.zeros(10)
    before = [sys.getrefcount(o) for o in (a, b, x, y)]
    for _ in range(10):
        _C.activation_forward(a, b, "silu", 0)
        _C.activation_forward(x, y, "silu", 0)
        _C.grad_norm([a, x], torch.zeros((), dtype=torch.float64), None, 0)
        with pytest.raises(TypeError):
            _C.activation_forward(x, a.astype("i4"), "silu", 0)
    assert [sys.getrefcount(o) for o in (a, b, x, y)] == before


def test_tensors_of_a_list_outlive_the_call():
    """Another thread empties the list while the kernel reads its tensors."""
    norm = torch.zeros((), dtype=torch.float64)
    for _ in range(5):
        grads = [torch.ones(300_000) for _ in range(20)]
        clearer = threading.Thread(target=grads.clear)
        clearer.start()
        _C.grad_norm(grads, norm, None, 0)
        clearer.join()
        assert norm.item() in (0.0, pytest.approx((300_000 * 20) ** 0.5))


@pytest.mark.parametrize(
    "dtype",
    [torch.complex64, torch.int8, torch.int16, torch.uint16, torch.float8_e4m3fn, torch.int64, torch.bool],
    ids=str,
)
def test_unsupported_torch_dtypes(dtype):
    with pytest.raises(TypeError, match=r"not supported|must be float32"):
        _C.activation_forward(torch.zeros(3).to(dtype), torch.zeros(3), "silu", 0)


@pytest.mark.parametrize("dtype", [">f4", "c8", "i1", "u4", "O", "U3", "f4,f4", "M8[s]", "g"])
def test_unsupported_numpy_dtypes(dtype):
    with pytest.raises(TypeError, match=r"not supported|cannot read"):
        _C.activation_forward(np.zeros(3, dtype), torch.zeros(3), "silu", 0)


def test_bfloat16_of_numpy():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    with pytest.raises(TypeError, match=r"cannot read this numpy.ndarray"):
        _C.activation_forward(np.zeros(3, bfloat16), torch.zeros(3, dtype=torch.bfloat16), "silu", 0)


@pytest.mark.parametrize(
    "x", [3, 1.5, "abc", [1.0, 2.0], pytest.param(object(), id="object"), torch.float32], ids=repr
)
def test_things_that_are_no_tensors(x):
    with pytest.raises(TypeError, match=r"expected a tensor or an array, got"):
        _C.activation_forward(x, torch.zeros(3), "silu", 0)


def test_none_is_a_missing_argument():
    with pytest.raises(ValueError, match=r"activation: x is required"):
        _C.activation_forward(None, torch.zeros(3), "silu", 0)


@pytest.mark.parametrize("make", [torch.zeros, lambda s: np.zeros(s, "f4")], ids=["torch", "numpy"])
def test_more_than_eight_dimensions(make):
    with pytest.raises(ValueError, match=r"at most 8 dimensions, got 9"):
        _C.activation_forward(make((1,) * 9), torch.zeros(1), "silu", 0)
    y = torch.ones((1,) * 8)
    _C.activation_forward(make((1,) * 8), y, "silu", 0)
    assert y.item() == 0


class Wrapper(torch.Tensor):
    """A tensor subclass without memory of its own, as DTensor is."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3, device="meta"),
        lambda: torch.zeros(3).to_sparse(),
        lambda: Wrapper(torch.zeros(3)),
    ],
    ids=["meta", "sparse", "wrapper"],
)
def test_tensors_without_memory(make):
    with pytest.raises(TypeError, match=r"cannot (read|be used)") as error:
        _C.activation_forward(make(), torch.zeros(3), "silu", 0)
    assert "\n" not in str(error.value)
