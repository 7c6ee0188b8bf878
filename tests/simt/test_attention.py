# SPDX-License-Identifier: Apache-2.0
"""attention's CUDA kernels at small sizes; tests/cuda/test_attention.py runs the same ones on a GPU."""

import pytest
import torch

from vision_accel import _C, ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(params=["sm_80", "sm_90a"])
def fused(request, monkeypatch):
    """The fused kernels of the sm_80 class, and Hopper's."""
    if request.param == "sm_90a" and torch.cuda.is_available() and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("not a Hopper GPU")
    monkeypatch.setenv("VISION_ACCEL_HOPPER_ATTENTION", str(int(request.param == "sm_90a")))


def case(n, m, dim, dtype, batch=1, heads=2):
    return tuple(torch.randn(batch, t, heads, dim).to(dtype) for t in (n, m, m))


def both(**options):
    return (
        lambda q, k, v: ops.attention(q, k, v, **options),
        lambda q, k, v: reference.attention(q, k, v, **options),
    )


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    ("n", "m", "dim"),
    [(50, 50, 64), (77, 77, 32), (17, 40, 80), (1, 33, 96), (9, 20, 128), (20, 100, 72), (70, 5, 64)],
)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_fused(n, m, dim, dtype, causal):
    if causal and n > m:
        n, m = m, n  # a query without keys is NaN in the reference
    assert_accurate(*both(causal=causal), case(n, m, dim, dtype))


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("n", [129, 197, 210, 257])  # the last: two copies
def test_chunk_sizes(n):
    assert_accurate(*both(), case(n, n, 64, torch.bfloat16, heads=1), grads=n == 210)


@pytest.mark.usefixtures("fused")
def test_two_steps_of_resident_keys():
    assert_accurate(*both(causal=True), case(210, 210, 32, torch.float16, heads=1), grads=False)
    padding = torch.zeros(1, 272, dtype=torch.bool)
    padding[0, 100:260] = True
    assert_accurate(*both(key_padding=padding), case(20, 272, 64, torch.float16, heads=1), grads=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "m", "dim"), [(7, 9, 20), (5, 6, 100)])
def test_without_tensor_cores(n, m, dim, dtype):
    assert_accurate(*both(causal=True), case(n, m, dim, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize(
    ("n", "m", "dim", "heads"), [(16, 16, 160, 2), (33, 41, 512, 1), (9, 3, 136, 1), (3, 1, 512, 1)]
)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_products(n, m, dim, heads, dtype, causal):
    if causal and n > m:
        n, m = m, n
    args = case(n, m, dim, dtype, heads=heads)
    assert _C.attention_workspace(*args[:2], False) > 0
    assert_accurate(*both(causal=causal), args)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize(("dtype", "dim"), [(torch.float32, 64), (torch.bfloat16, 64), (torch.bfloat16, 136)])
def test_hidden_keys(dtype, dim):
    padding = torch.zeros(2, 21, dtype=torch.bool)
    padding[0, 5:] = True
    padding[1, ::3] = True
    assert_accurate(*both(key_padding=padding), case(10, 21, dim, dtype, batch=2, heads=1))


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dim", [64, 136])
@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_scale_that_is_not_positive(scale, dim):
    padding = torch.tensor([[False, True, False, False, True]])
    options = {"scale": scale, "key_padding": padding, "causal": True}
    assert_accurate(*both(**options), case(5, 5, dim, torch.bfloat16))


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dim", [64, 136])
def test_query_without_keys_gives_zeros(dim):
    q, k, v = (x.requires_grad_() for x in case(6, 3, dim, torch.float16))
    y = ops.attention(q, k, v, causal=True)
    assert y[:, :3].abs().max() == 0
    y[:, :3].sum().backward()
    assert all(x.grad.abs().max() == 0 for x in (q, k, v))


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize(("dim", "heads"), [(32, 2), (136, 1)])
def test_packed(dim, heads):
    qkv = torch.randn(2, 19, 3 * heads * dim).half()
    ours, theirs = (lambda x, f=f: f(x, heads) for f in (ops.attention_qkv, reference.attention_qkv))
    assert_accurate(ours, theirs, (qkv,))


@pytest.mark.parametrize("dim", [64, 136])
def test_empty(dim):
    for shape in ((0, 5, 2, dim), (2, 0, 2, dim), (2, 5, 2, 0)):
        x = torch.randn(shape).half().requires_grad_()
        y = ops.attention(x, x, x)
        y.sum().backward()
        assert x.grad.shape == x.shape
    for n, m in ((5, 0), (0, 5)):
        q, k, v = (x.requires_grad_() for x in case(n, m, dim, torch.float16))
        y = ops.attention(q, k, v)
        y.sum().backward()
        assert not y.any()
        assert not any(x.grad.any() for x in (q, k, v))


def test_products_want_a_workspace():
    q = torch.randn(1, 4, 1, 136)
    arguments = q, q, q, None, torch.empty_like(q), q.new_empty(1, 1, 4)
    needed = _C.attention_workspace(q, q, False)
    for workspace, error in (
        (None, ValueError),
        (q, TypeError),
        (torch.empty(needed - 1, dtype=torch.uint8), ValueError),
    ):
        with pytest.raises(error, match="attention: workspace"):
            _C.attention_forward(*arguments, workspace, False, 1.0, False, 0)
