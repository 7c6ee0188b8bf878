# SPDX-License-Identifier: Apache-2.0
"""linear on a GPU: every CUTLASS kernel and the way to it, against the reference under the accuracy rule."""

import pytest
import torch

from vision_accel import ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

pytestmark = pytest.mark.cuda
HALVES = [torch.float16, torch.bfloat16]
DTYPES = [torch.float32, torch.float64, *HALVES]
ACTIVATIONS = ["none", "gelu", "gelu_tanh", "quick_gelu", "silu"]


def case(m, n, k, dtype, activation="gelu", residual=False, scale=False):
    x, w, b = torch.randn(m, k), torch.randn(n, k) / k**0.5, torch.randn(n)
    r = torch.randn(m, n).to(dtype) if residual else None
    s = torch.randn(n).to(dtype) if scale else None
    return x.to(dtype), w.to(dtype), b.to(dtype), activation, r, s


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [
        (197 * 16, 768, 768),  # large tiles, stream-K in the weight's gradient
        (197, 2304, 768),  # few rows
        (577 * 4, 256, 3072),  # long sums
        (1030, 392, 588),  # the patches of ViT-L/14: 4-byte accesses
        (257, 1000, 768),
        (300, 10, 96),  # a small head: its gradients are not aligned
        (65, 129, 33),  # nothing is
        (1, 8, 8),
    ],
)
@pytest.mark.parametrize("parts", ["bias", "activation", "residual", "residual + scale", "all"])
def test_epilogues(dtype, m, n, k, parts):
    activation = "gelu" if parts in {"activation", "all"} else "none"
    args = case(
        m,
        n,
        k,
        dtype,
        activation,
        "residual" in parts or parts == "all",
        parts in {"residual + scale", "all"},
    )
    assert_accurate(ops.linear, reference.linear, args)
    assert_accurate(ops.linear, reference.linear, args, grads=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(dtype, activation):
    assert_accurate(ops.linear, reference.linear, case(400, 256, 128, dtype, activation))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_float32_residual_beside_16_bit(dtype):
    x, w, b, *_ = case(197 * 8, 768, 256, dtype)
    wide, scale = torch.randn(197 * 8, 768), torch.randn(768)
    for s in (None, scale, scale.to(dtype)):
        y = ops.linear(x, w, b, "none", wide, s)
        expected = reference.linear(x.double(), w.double(), b.double(), "none", wide.double(), s)
        assert y.dtype == torch.float32
        torch.testing.assert_close(y.double(), expected.double(), atol=2e-3, rtol=2e-3)


def test_tf32_only_when_asked_for():
    x, w, b, *_ = case(512, 256, 1024, torch.float32)
    truth = torch.nn.functional.linear(x.double(), w.double(), b.double())
    error = {}
    for allowed in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        try:
            error[allowed] = (ops.linear(x, w, b).double() - truth).abs().max().item()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False
    assert error[False] < 1e-5 < error[True] < 1e-2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_independent_of_the_batch_in_deterministic_mode(dtype):
    torch.use_deterministic_algorithms(True)
    try:
        x, w, b, activation, r, s = case(197 * 9, 768, 768, dtype, "gelu", True, True)
        with torch.no_grad():
            whole = ops.linear(x, w, b, activation, r, s)
            for begin, end in ((0, 1), (197, 394), (5, 1200)):
                part = ops.linear(x[begin:end], w, b, activation, r[begin:end], s)
                assert torch.equal(whole[begin:end], part)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_repeats_give_the_same_bits(dtype):
    args = case(197 * 16, 768, 768, dtype, "gelu", True, True)
    dy = torch.randn(197 * 16, 768).to(dtype)

    def run():
        leaves = [a.clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
        ops.linear(*leaves).backward(dy)
        return [t.grad for t in leaves if isinstance(t, torch.Tensor)]

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_strides_offsets_and_broadcast_rows():
    base, w = torch.randn(6, 40, 128).half(), (torch.randn(96, 128) / 11).half()
    for x in (
        base[:, ::2],
        base.transpose(0, 1),
        base[..., ::2],
        base[..., 1:33],
        base[:1].expand(5, -1, -1),
    ):
        assert_accurate(ops.linear, reference.linear, (x, w[:, : x.shape[-1]], torch.randn(96).half()))
    assert_accurate(ops.linear, reference.linear, (base, torch.randn(128, 96).half().t()))
    y = ops.linear(base, w, rows=(32, 96))
    torch.testing.assert_close(y, ops.linear(base, w)[..., 32:])


def test_empty():
    for m, n, k in ((0, 8, 16), (3, 0, 16), (3, 8, 0)):
        x, w, b = torch.randn(m, k), torch.randn(n, k), torch.randn(n)
        assert_accurate(ops.linear, reference.linear, (x, w, b))


def test_autocast_and_compile():
    x, w, b, *_ = case(64, 128, 96, torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        y = ops.linear(x, w, b, "gelu")
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, ops.linear(x.bfloat16(), w.bfloat16(), b.bfloat16(), "gelu"))
    compiled = torch.compile(lambda *a: ops.linear(*a).relu(), fullgraph=True, backend="aot_eager")
    assert_accurate(compiled, lambda *a: reference.linear(*a).relu(), (x, w, b))


@pytest.mark.parametrize("m", [197, 197 * 64])
def test_graph_capture(m):
    x, w, b, *_ = case(m, 768, 768, torch.bfloat16)
    with torch.no_grad():
        ops.linear(x, w, b, "gelu")  # loads the kernel
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = ops.linear(x, w, b, "gelu")
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(y, ops.linear(x, w, b, "gelu"))


def test_another_stream():
    x, w, *_ = case(4096, 768, 768, torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        y = ops.linear(x * 2, w)
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(y, ops.linear(x * 2, w))


def test_tensors_of_two_devices_are_refused():
    with pytest.raises(ValueError, match="linear: weight must be on"):
        ops.linear(torch.randn(3, 8), torch.randn(4, 8, device="cpu"))


def test_running_out_of_memory_leaves_the_process_usable():
    x, w, b, *_ = case(64, 128, 96, torch.bfloat16)
    with pytest.raises(torch.OutOfMemoryError):
        ops.linear(x[:1].expand(1 << 40, -1), w, b)
    assert_accurate(ops.linear, reference.linear, (x, w, b))
