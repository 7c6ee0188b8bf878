# SPDX-License-Identifier: Apache-2.0
"""The ops that memory bandwidth limits, on a GPU, against the reference under the accuracy rule."""

import math

import numpy as np
import pytest
import torch

from tests.ops import test_resample as resample
from vision_accel import ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

pytestmark = pytest.mark.cuda
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KINDS = ["none", "gelu", "gelu_tanh", "quick_gelu", "silu"]
LAYER_NORM = [(197 * 64, 768), (3, 1664), (2, 5, 33), (40, 16), (300, 2056), (1, 2048), (0, 8)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", LAYER_NORM, ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_layer_norm(shape, dtype, residual):
    x, r = (torch.randn(shape).to(dtype) for _ in range(2))
    w, b = (torch.randn(shape[-1]).to(dtype) for _ in range(2))
    if residual:
        ours = lambda x, w, b, r: ops.layer_norm(x, w, b, residual=r)  # noqa: E731
        theirs = lambda x, w, b, r: reference.layer_norm(x, w, b, residual=r)  # noqa: E731
        assert_accurate(ours, theirs, (x, w, b, r))
    else:
        assert_accurate(ops.layer_norm, reference.layer_norm, (x, w, b))


def test_layer_norm_misaligned_without_parameters():
    assert_accurate(ops.layer_norm, reference.layer_norm, (torch.randn(70, 65)[:, 1:], None, None))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_activation(kind, dtype):
    x = (torch.randn(197, 3072) * 4).to(dtype)
    for argument in (x, x.flatten()[1:], x.t(), x[:0]):
        assert_accurate(ops.activation, reference.activation, (argument, kind))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("patch", [4, 7, 14, 16, (2, 8)], ids=str)
def test_patchify(patch, dtype):
    ph, pw = (patch, patch) if isinstance(patch, int) else patch
    for x in (
        torch.randn(5, 3, 14 * ph, 14 * pw),
        torch.randn(2, 2 * ph, 3 * pw, 3).permute(0, 3, 1, 2),
        torch.randn(1, 2, 2 * ph, 3 * pw + 1)[..., 1:],
        torch.randn(0, 3, ph, pw),
    ):
        assert_accurate(ops.patchify, reference.patchify, (x.to(dtype), patch))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(512, 1000), (3, 7), (11, 64), (2, 2056), (1, 4099)], ids=str)
def test_cross_entropy(shape, dtype):
    logits, indices = torch.randn(shape).mul(3).to(dtype), torch.randint(shape[1], shape[:1])
    if shape[0] > 2:
        indices[1] = -100
    for target in (indices, torch.randn(shape).softmax(-1).to(dtype)):
        for smoothing, reduction in ((0.0, "mean"), (0.1, "mean"), (0.1, "sum"), (0.3, "none")):
            args = (logits, target, smoothing, reduction)
            assert_accurate(ops.cross_entropy, reference.cross_entropy, args)


OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "grad_scale": 0.5}
SHAPES = [(3, 5), (1,), (400_001,), (0, 4), (), (16_384,), (768, 3072), *([(9,)] * 70)]


def lists_for_adamw(dtype):
    state = torch.float64 if dtype == torch.float64 else torch.float32
    lists = [[torch.randn(s).to(dtype) for s in SHAPES] for _ in range(2)]
    lists[0][2] = torch.randn(400_002).to(dtype)[1:]  # misaligned
    return lists + [[torch.rand(s, dtype=state) for s in SHAPES] for _ in range(2)]


def assert_close_lists(lists, exact):
    for ours, theirs in zip(lists, exact, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b.to(a.dtype), rtol=max(1e-6, torch.finfo(a.dtype).eps), atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("known_to_the_gpu", [False, True])
def test_adamw(dtype, known_to_the_gpu):
    lists = lists_for_adamw(dtype)
    exact = [[t.double() for t in one] for one in lists]
    ops.adamw(*lists, step=torch.tensor(3) if known_to_the_gpu else 3, **OPTIONS)
    reference.adamw(*exact, step=3, **OPTIONS)
    assert_close_lists(lists, exact)


def test_adamw_in_a_graph_counts_its_steps():
    lists = lists_for_adamw(torch.float32)
    exact = [[t.double() for t in one] for one in lists]
    step = torch.tensor(0)
    warm = [[t.clone() for t in one] for one in lists]
    ops.adamw(*warm, step=torch.tensor(1), **OPTIONS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step += 1
        ops.adamw(*lists, step=step, **OPTIONS)
    for i in range(1, 4):
        graph.replay()
        reference.adamw(*exact, step=i, **OPTIONS)
    assert_close_lists(lists, exact)


def test_grad_norm():
    grads = [torch.randn(s).to(d) for d in DTYPES for s in ((100,), (2_000_000,), (7, 3))]
    expected = math.sqrt(sum(g.double().square().sum().item() for g in grads))
    norm = ops.grad_norm(grads)
    assert norm.item() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(norm, ops.grad_norm(grads))
    assert ops.grad_norm([torch.zeros(0)]) == 0


@pytest.mark.parametrize("seed", range(4))
def test_resample_has_the_bits_of_the_cpu(seed):
    rng = np.random.default_rng(seed)
    table = ops.normalization_table((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    for _ in range(12):
        h, w, new_h, new_w = (int(n) for n in np.exp(rng.uniform(0, 6.5, 4)))
        image = resample.picture(rng, h, w, 3)
        options = {
            "interpolation": str(rng.choice(list(resample.INTERPOLATIONS))),
            "flip": bool(rng.random() < 0.5),
            "table": table if rng.random() < 0.5 else None,
        }
        ours = ops.resample(torch.tensor(image), (new_h, new_w), **options)
        assert ours.is_cuda
        assert np.array_equal(ours.cpu().numpy(), ops.resample(image, (new_h, new_w), **options))


@pytest.mark.parametrize("size", [(20, 30), (2000, 3000)], ids=str)  # the tables of the latter go in parts
def test_resample_in_a_graph(size):
    image = torch.randint(256, (40, 50, 3), dtype=torch.uint8)
    ops.resample(image, size)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        resized = ops.resample(image, size)
    image.copy_(torch.randint(256, image.shape, dtype=torch.uint8))
    graph.replay()
    assert torch.equal(resized, ops.resample(image, size))


def test_another_stream():
    x = torch.randn(4096, 768).bfloat16()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = ops.layer_norm(ops.activation(x * 2, "gelu"), None, None)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(y, ops.layer_norm(ops.activation(x * 2, "gelu"), None, None))


def test_graph_capture():
    x, w, target = torch.randn(64, 1000), torch.randn(1000), torch.randint(1000, (64,))

    def run():
        return ops.cross_entropy(ops.layer_norm(ops.activation(x, "silu"), w, None), target)

    with torch.no_grad():
        run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = run()
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(loss, run())
