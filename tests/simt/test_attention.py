# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vision_accel import ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(params=["sm_80", "sm_90a"], autouse=True)
def _kernels(request, monkeypatch):
    """The tensor-core kernels of the sm_80 class, and Hopper's."""
    monkeypatch.setenv("VISION_ACCEL_HOPPER_ATTENTION", str(int(request.param == "sm_90a")))


def attention_case(n, m, dim, dtype, batch=1, heads=2):
    return tuple(torch.randn(batch, t, heads, dim).to(dtype) for t in (n, m, m))


def both(**options):
    return (
        lambda q, k, v: ops.attention(q, k, v, **options),
        lambda q, k, v: reference.attention(q, k, v, **options),
    )


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    ("n", "m", "dim"),
    [(50, 50, 64), (77, 77, 32), (17, 40, 80), (1, 33, 96), (9, 20, 128), (20, 100, 72), (70, 5, 64)],
)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_attention_on_tensor_cores(n, m, dim, dtype, causal):
    if causal and n > m:
        n, m = m, n  # a query without keys is NaN in the reference
    assert_accurate(*both(causal=causal), attention_case(n, m, dim, dtype))


@pytest.mark.parametrize("n", [129, 197, 210])
def test_attention_chunk_sizes(n):
    assert_accurate(*both(), attention_case(n, n, 64, torch.bfloat16, heads=1), grads=n == 210)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "m", "dim"), [(7, 9, 20), (5, 6, 160), (3, 4, 512)])
def test_attention_without_tensor_cores(n, m, dim, dtype):
    assert_accurate(*both(causal=True), attention_case(n, m, dim, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_with_hidden_keys(dtype):
    padding = torch.zeros(2, 21, dtype=torch.bool)
    padding[0, 5:] = True
    padding[1, ::3] = True
    assert_accurate(*both(key_padding=padding), attention_case(10, 21, 64, dtype, batch=2, heads=1))


def test_attention_query_without_keys_gives_zeros():
    q, k, v = attention_case(6, 3, 64, torch.float16)
    assert ops.attention(q, k, v, causal=True)[:, :3].abs().max() == 0


def test_attention_packed():
    qkv = torch.randn(2, 19, 3 * 2 * 32).half()
    ours, theirs = (lambda x, f=f: f(x, 2) for f in (ops.attention_qkv, reference.attention_qkv))
    assert_accurate(ours, theirs, (qkv,))
