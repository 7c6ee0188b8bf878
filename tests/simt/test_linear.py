# SPDX-License-Identifier: Apache-2.0
"""linear's own CUDA kernels (not CUTLASS's), run on the CPU by the emulator at small sizes."""

import pytest
import torch

from vision_accel import _C, ops
from vision_accel.ops import _pack_cache
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

pytestmark = pytest.mark.skipif(
    not hasattr(_C, "set_simt_mode"), reason="this build has no VISION_ACCEL_SIMT"
)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ACTIVATIONS = ["none", "gelu", "gelu_tanh", "quick_gelu", "silu"]


@pytest.fixture(autouse=True)
def _simt(monkeypatch):
    monkeypatch.setattr(_pack_cache, "packed_weight", lambda _: None)  # only the CPU's kernels pack
    _C.set_simt_mode(True)
    yield
    _C.set_simt_mode(False)


def case(m, n, k, dtype, activation="gelu", residual=True, scale=True):
    x, w, b = torch.randn(m, k), torch.randn(n, k) / k**0.5, torch.randn(n)
    r = torch.randn(m, n).to(dtype) if residual else None
    s = torch.randn(n).to(dtype) if scale else None
    return x.to(dtype), w.to(dtype), b.to(dtype), activation, r, s


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(3, 5, 7), (65, 72, 40), (1, 130, 64), (70, 16, 1)])
def test_every_part_of_the_epilogue(dtype, m, n, k):
    assert_accurate(ops.linear, reference.linear, case(m, n, k, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(dtype, activation):
    assert_accurate(ops.linear, reference.linear, case(9, 24, 16, dtype, activation, False, False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_activations_at_infinity(dtype):
    x = torch.tensor([[float("-inf")], [-1e4], [1e4], [float("inf")], [float("nan")]]).to(dtype)
    for activation in ACTIVATIONS[1:]:
        y = ops.linear(x, torch.ones(1, 1, dtype=dtype), None, activation)[:, 0]
        assert y[:2].abs().max() < 1e-25
        assert y[2:4].tolist() == [x[2].item(), float("inf")]
        assert y[4].isnan()


def test_strides_offsets_and_wide_tensors():
    base = torch.randn(6, 10, 65).half()
    w = (torch.randn(20, 65) / 8).half()
    for x in (base[:, ::2, 1:], base.transpose(0, 1)[..., :32], base[0, 0, :9]):
        assert_accurate(ops.linear, reference.linear, (x, w[:, : x.shape[-1]], torch.randn(20).half()))
    assert_accurate(ops.linear, reference.linear, (base, torch.randn(65, 24).half().t()))
    x, w, b, *_ = case(9, 24, 16, torch.bfloat16)
    wide, scale = torch.randn(9, 24), torch.randn(24)
    y = ops.linear(x, w, b, "gelu", wide, scale)
    torch.testing.assert_close(y, reference.linear(x, w, b, "gelu", wide, scale), atol=0.02, rtol=0.01)
    assert y.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_long_sums_are_cut_and_joined(dtype):
    """The weight's gradient sums over all rows: with many, blocks share them."""
    assert _C.linear_workspace(torch.ones(2200, 9), torch.ones(0), 5, False, True) > 9 * 5
    assert_accurate(ops.linear, reference.linear, case(2200, 9, 5, dtype, "silu", False))


def test_no_rows_and_no_features():
    for m, n, k in ((0, 4, 5), (3, 0, 5), (3, 4, 0)):
        x, w = torch.randn(m, k, requires_grad=True), torch.randn(n, k, requires_grad=True)
        b = torch.randn(n, requires_grad=True)
        y = ops.linear(x, w, b)
        torch.testing.assert_close(y, reference.linear(x, w, b))
        for ours, theirs in zip(
            torch.autograd.grad(y.sum(), (x, w, b)),
            torch.autograd.grad(reference.linear(x, w, b).sum(), (x, w, b)),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)


def test_rows_do_not_depend_on_the_batch():
    x, w, b, activation, r, s = case(130, 40, 50, torch.float32)
    whole = ops.linear(x, w, b, activation, r, s)
    for begin, end in ((0, 1), (63, 70), (129, 130)):
        part = ops.linear(x[begin:end], w, b, activation, r[begin:end], s)
        assert torch.equal(whole[begin:end], part)
