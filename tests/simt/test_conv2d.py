# SPDX-License-Identifier: Apache-2.0
"""conv2d's CUDA kernels at small sizes, under the accuracy rule: with tensor cores and without."""

import sys

import pytest
import torch

from tests.ops.test_conv2d import DTYPES, GEOMETRIES, case, check
from vision_accel import ops
from vision_accel.ops import _winograd
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

HALVES = DTYPES[2:]
# b, h, w, c, n, kernel, stride, padding
IN_EIGHTS = [
    (2, 5, 7, 8, 24, 3, 1, 1),
    (1, 9, 8, 40, 136, 3, 2, (0, 1, 0, 1)),
    (1, 13, 11, 32, 72, 1, 1, 0),
    (1, 8, 8, 16, 8, 4, 2, 1),
    (1, 6, 5, 24, 16, (2, 3), 1, (1, 0, 2, 0)),
    (1, 10, 11, 8, 8, 1, 3, 0),
    (1, 3, 3, 8, 8, 3, 1, (4, 0, 0, 5)),
    (3, 1, 1, 64, 64, 3, 1, 1),
]


@pytest.fixture(autouse=True)
def _unpacked(monkeypatch):
    """Weights on a GPU are not packed, nor transformed."""

    monkeypatch.setattr(_winograd, "suits", lambda *_: False)
    modules = [sys.modules[f"vision_accel.ops.{name}"] for name in ("conv2d", "_upsample_conv2d")]

    def plain(x, weight, train, form="conv2d", arrange=modules[0]._matrix):
        return arrange(weight.to(x.dtype)).contiguous(), None

    for module in modules:
        monkeypatch.setattr(module, "pack", plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_any_channels(geometry, dtype):
    *shape, stride, padding = geometry
    check(case(*shape, dtype), stride=stride, padding=padding)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("geometry", IN_EIGHTS, ids=str)
def test_tensor_cores(geometry, dtype):
    *shape, stride, padding = geometry
    check(case(*shape, dtype), stride=stride, padding=padding)


@pytest.mark.parametrize("n", [8, 24, 72])
def test_a_16_bit_weight_beside_a_float32_image_is_multiplied_in_tf32(n):
    x, w, b = case(1, 5, 7, 12, n, 3)
    w, b = w.half(), b.half()
    y = ops.conv2d(x, w, b, padding=1)
    truth = reference.conv2d(x.double(), w.double(), b.double(), padding=1)
    assert y.dtype == torch.float32
    error = (y.double() - truth).abs().max().item()
    assert 1e-5 < error < 2e-3  # tf32 has ten bits, as float16


def test_a_long_sum_over_pixels_is_cut():
    check(case(1, 24, 45, 8, 8, 1, torch.bfloat16))  # three parts of 512 pixels at most


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [3, 16])
def test_epilogue(channels, dtype):
    x, w, b = case(2, 4, 3, channels, channels, 3, dtype)
    r = torch.randn(2, 4, 3, channels).to(dtype)
    args = (x, w, b, "silu", r)
    check(args, grads=False, padding=1)
    if dtype in HALVES:
        wide = ops.conv2d(x, w, b, "gelu", r.float(), padding=1)
        truth = reference.conv2d(x.double(), w.double(), b.double(), "gelu", r.double(), padding=1)
        assert wide.dtype == torch.float32
        torch.testing.assert_close(wide.double(), truth, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [(3, 5), (16, 24)], ids=str)
def test_upsample(channels, dtype):
    args = case(1, 3, 5, *channels, 3, dtype)
    assert_accurate(ops.upsample_conv2d, reference.upsample_conv2d, args)


def test_strided_and_misaligned_images():
    base = torch.randn(2, 6, 7, 33).half()
    _, w, b = case(1, 1, 1, 16, 8, 3, torch.float16)
    for x in (
        base[:, ::2, :, :16],
        base[..., 1:17],
        base.transpose(1, 2)[..., 8:24],
        base[..., ::2][..., :16],
    ):
        check((x, w, b), padding=1)


def test_empty():
    for shape in ((0, 4, 4, 8, 8, 3), (1, 4, 4, 8, 0, 3)):
        x, w, b = case(*shape)
        y = ops.conv2d(x, w.requires_grad_(), b, padding=1)
        y.sum().backward()
        assert torch.equal(w.grad, torch.zeros_like(w))
