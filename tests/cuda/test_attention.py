# SPDX-License-Identifier: Apache-2.0
"""attention on a GPU, by the kernels of the sm_80 class and by Hopper's, against the reference."""

import pytest
import torch

from vision_accel import ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

pytestmark = pytest.mark.cuda
HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(params=["sm_80", "sm_90a"], autouse=True)
def _kernels(request, monkeypatch):
    if request.param == "sm_90a" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("not a Hopper GPU")
    monkeypatch.setenv("VISION_ACCEL_HOPPER_ATTENTION", str(int(request.param == "sm_90a")))


def case(n, m, dim, dtype, batch=3, heads=4):
    return tuple(torch.randn(batch, t, heads, dim).to(dtype) for t in (n, m, m))


def both(**options):
    return (
        lambda q, k, v: ops.attention(q, k, v, **options),
        lambda q, k, v: reference.attention(q, k, v, **options),
    )


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("dim", [32, 64, 72, 80, 88, 96, 104, 128])
@pytest.mark.parametrize("n", [1, 50, 77, 144, 197, 257, 577])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_lengths_and_head_dims(n, dim, dtype, causal):
    assert_accurate(*both(causal=causal), case(n, n, dim, dtype, heads=2))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("n", "m"), [(1, 33), (17, 300), (200, 5), (209, 64), (1024, 1024), (640, 2000)])
def test_queries_and_keys_of_different_number(n, m, dtype):
    assert_accurate(*both(), case(n, m, 64, dtype, batch=1))
    if n <= m:  # a query without keys is NaN in the reference
        assert_accurate(*both(causal=True), case(n, m, 64, dtype, batch=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "dim"), [(50, 64), (9, 20), (40, 160), (65, 512)])
def test_without_tensor_cores(n, dim, dtype):
    assert_accurate(*both(causal=True), case(n, n, dim, dtype, heads=2))


@pytest.mark.parametrize("n", [77, 300])
def test_hidden_keys(n):
    padding = torch.zeros(2, n, dtype=torch.bool)
    padding[0, 5:] = True
    padding[1, ::3] = True
    assert_accurate(*both(key_padding=padding), case(20, n, 64, torch.bfloat16, batch=2))


def test_query_without_keys_gives_zeros():
    q, k, v = case(6, 3, 64, torch.float16)
    assert ops.attention(q, k, v, causal=True)[:, :3].abs().max() == 0


@pytest.mark.parametrize("dim", [64, 80])
def test_packed(dim):
    qkv = torch.randn(5, 197, 3 * 6 * dim).bfloat16()
    ours, theirs = (lambda x, f=f: f(x, 6) for f in (ops.attention_qkv, reference.attention_qkv))
    assert_accurate(ours, theirs, (qkv,))


def test_strides_and_misaligned_rows():
    x = torch.randn(2, 40, 3, 64 + 8).half()
    for q in (x[..., 8:], x[..., 4:68], x[:, ::2, :, :64], x[:1, ..., :64].expand(2, -1, -1, -1)):
        assert_accurate(*both(), (q, q, q))


@pytest.mark.parametrize(("batch", "n"), [(64, 197), (2, 577)])
def test_an_image_has_the_same_bits_in_any_batch_and_every_time(batch, n):
    qkv = torch.randn(batch, n, 3 * 12 * 64).bfloat16().requires_grad_()
    dy = torch.randn(batch, n, 12 * 64).bfloat16()

    def run(x, dy):
        y = ops.attention_qkv(x, 12)
        return y, *torch.autograd.grad(y, x, dy)

    whole = run(qkv, dy)
    assert all(torch.equal(a, b) for a, b in zip(whole, run(qkv, dy), strict=True))
    alone = run(qkv[1:2].detach().requires_grad_(), dy[1:2])
    assert all(torch.equal(a[1:2], b) for a, b in zip(whole, alone, strict=True))


def test_graph_capture_and_another_stream():
    qkv = torch.randn(8, 197, 3 * 12 * 64).bfloat16()
    with torch.no_grad():
        ops.attention_qkv(qkv, 12)  # loads the kernel
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = ops.attention_qkv(qkv, 12)
        qkv.copy_(torch.randn_like(qkv))
        graph.replay()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            again = ops.attention_qkv(qkv, 12)
        torch.cuda.current_stream().wait_stream(stream)
        assert torch.equal(y, again)


def test_empty():
    for shape in ((0, 5, 2, 64), (2, 0, 2, 64), (2, 5, 2, 0)):
        x = torch.randn(shape).half().requires_grad_()
        y = ops.attention(x, x, x)
        y.sum().backward()
        assert x.grad.shape == x.shape
    q, k = torch.randn(2, 5, 2, 64).half().requires_grad_(), torch.zeros(2, 0, 2, 64).half()
    y = ops.attention(q, k, k)
    y.sum().backward()
    assert y.abs().max() == 0
    assert q.grad.abs().max() == 0


def test_errors_name_the_argument():
    q = torch.randn(2, 5, 2, 64).half()
    with pytest.raises(ValueError, match=r"attention: k must be \["):
        ops.attention(q, q[..., :32], q)
    with pytest.raises(ValueError, match="attention: v must be on"):
        ops.attention(q, q, q.cpu())
    with pytest.raises(ValueError, match="head dim must be at most 512"):
        ops.attention(*[torch.randn(1, 2, 1, 520)] * 3)
