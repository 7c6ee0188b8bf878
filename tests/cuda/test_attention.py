# SPDX-License-Identifier: Apache-2.0
"""attention on a GPU: the cases of the emulator, larger ones, streams, graphs and equal bits."""

import pytest
import torch

from tests.simt.test_attention import (  # noqa: F401  the tests among them are collected here too
    HALVES,
    both,
    case,
    fused,
    test_chunk_sizes,
    test_empty,
    test_fused,
    test_hidden_keys,
    test_packed,
    test_products,
    test_products_want_a_workspace,
    test_query_without_keys_gives_zeros,
    test_scale_that_is_not_positive,
    test_two_steps_of_resident_keys,
    test_without_tensor_cores,
)
from vision_accel import ops
from vision_accel.testing.compare import assert_accurate

pytestmark = pytest.mark.cuda


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("dim", [32, 64, 72, 80, 88, 96, 104, 128])
@pytest.mark.parametrize("n", [1, 50, 77, 144, 197, 257, 577])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_lengths_and_head_dims(n, dim, dtype, causal):
    assert_accurate(*both(causal=causal), case(n, n, dim, dtype, batch=3))


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("n", "m"), [(1, 33), (17, 300), (200, 5), (209, 64), (1024, 1024), (640, 2000)])
def test_queries_and_keys_of_different_number(n, m, dtype):
    assert_accurate(*both(), case(n, m, 64, dtype, heads=4))
    if n <= m:  # a query without keys is NaN in the reference
        assert_accurate(*both(causal=True), case(n, m, 64, dtype, heads=4))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize(
    ("n", "m", "dim"), [(64, 64, 512), (1024, 1024, 512), (577, 1025, 256), (600, 900, 64)]
)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_large_products(n, m, dim, dtype, causal):
    assert_accurate(*both(causal=causal), case(n, m, dim, dtype, heads=1))


def test_products_in_parts():
    """So many scores are cut into parts, and the gradients of keys and values are sums over them."""
    q, k, v = (x.requires_grad_() for x in case(12_608, 12_608, 136, torch.bfloat16, heads=1))
    y = ops.attention(q, k, v)
    dy = torch.randn_like(y)
    grads = torch.autograd.grad(y, (q, k, v), dy)
    half = slice(6000, 6100)  # queries are independent
    part = ops.attention(q[:, half], k, v)
    torch.testing.assert_close(part, y[:, half], atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(
        torch.autograd.grad(part, q, dy[:, half])[0][:, half], grads[0][:, half], atol=1e-2, rtol=1e-2
    )
    ones = grads[2].float().sum((0, 1, 2)), dy.float().sum((0, 1))  # each query's probabilities sum to one
    torch.testing.assert_close(*ones, atol=1.0, rtol=1e-2)


@pytest.mark.usefixtures("fused")
def test_strides_and_misaligned_rows():
    x = torch.randn(2, 40, 3, 64 + 8).half()
    for q in (x[..., 8:], x[..., 4:68], x[:, ::2, :, :64], x[:1, ..., :64].expand(2, -1, -1, -1)):
        assert_accurate(*both(), (q, q, q))


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize(
    ("batch", "n", "heads", "dim"), [(64, 197, 12, 64), (2, 577, 12, 64), (3, 1024, 1, 512)]
)
def test_an_image_has_the_same_bits_in_any_batch_and_every_time(batch, n, heads, dim):
    qkv = torch.randn(batch, n, 3 * heads * dim).bfloat16().requires_grad_()
    dy = torch.randn(batch, n, heads * dim).bfloat16()

    def run(x, dy):
        y = ops.attention_qkv(x, heads)
        return y, *torch.autograd.grad(y, x, dy)

    whole = run(qkv, dy)
    assert all(torch.equal(a, b) for a, b in zip(whole, run(qkv, dy), strict=True))
    alone = run(qkv[1:2].detach().requires_grad_(), dy[1:2])
    assert all(torch.equal(a[1:2], b) for a, b in zip(whole, alone, strict=True))


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize(("heads", "dim"), [(12, 64), (1, 512)])
def test_graph_capture_and_another_stream(heads, dim):
    qkv = torch.randn(8, 197, 3 * heads * dim).bfloat16()
    with torch.no_grad():
        ops.attention_qkv(qkv, heads)  # loads the kernel
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = ops.attention_qkv(qkv, heads)
        qkv.copy_(torch.randn_like(qkv))
        graph.replay()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            again = ops.attention_qkv(qkv, heads)
        torch.cuda.current_stream().wait_stream(stream)
        assert torch.equal(y, again)


def test_errors_name_the_argument():
    q = torch.randn(2, 5, 2, 64).half()
    with pytest.raises(ValueError, match=r"attention: k must be \["):
        ops.attention(q, q[..., :32], q)
    with pytest.raises(ValueError, match="attention: v must be on"):
        ops.attention(q, q, q.cpu())
    with pytest.raises(ValueError, match="head dim must be at most 512"):
        ops.attention(*[torch.randn(1, 2, 1, 520)] * 3)
