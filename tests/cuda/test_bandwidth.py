# SPDX-License-Identifier: Apache-2.0
"""The ops that memory bandwidth limits, on a GPU: the emulator's cases, larger ones, streams and graphs."""

import numpy as np
import pytest
import torch

from tests.ops import test_resample as resample
from tests.simt.test_memory_bound import (  # noqa: F401  the tests among them are collected here too
    DTYPES,
    KINDS,
    OPTIONS,
    assert_close_lists,
    check_activation,
    check_adamw,
    check_block_float,
    check_cross_entropy,
    check_layer_norm,
    lists_for_adamw,
    test_activation,
    test_activation_at_the_limits,
    test_adamw,
    test_adamw_of_mixed_dtypes_and_grad_norm,
    test_block_float,
    test_cross_entropy,
    test_cross_entropy_of_a_class_out_of_range_is_nan,
    test_layer_norm,
    test_layer_norm_without_parameters_and_misaligned,
    test_patchify,
)
from vision_accel import ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

pytestmark = pytest.mark.cuda
SHAPES = [(3, 5), (1,), (400_001,), (0, 4), (), (16_384,), (768, 3072), *([(9,)] * 70)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(197 * 64, 768), (3, 1664), (300, 2056), (0, 8)], ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_larger_layer_norm(shape, dtype, residual):
    check_layer_norm(shape, dtype, residual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_larger_activation(kind, dtype):
    check_activation((197, 3072), dtype, kind)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_larger_patchify_and_cross_entropy(dtype):
    assert_accurate(ops.patchify, reference.patchify, (torch.randn(5, 3, 224, 224).to(dtype), 16))
    check_cross_entropy((512, 1000), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_larger_adamw(dtype):
    check_adamw(SHAPES, dtype, known_to_the_gpu=False)


def test_adamw_in_a_graph_counts_its_steps():
    lists, exact = lists_for_adamw(SHAPES, torch.float32)
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


def test_grad_norm_of_many():
    grads = [torch.randn(s).to(d) for d in DTYPES for s in ((100,), (2_000_000,), (7, 3))]
    expected = torch.stack([g.double().square().sum() for g in grads]).sum().sqrt()
    norm = ops.grad_norm(grads)
    torch.testing.assert_close(norm.double(), expected, rtol=1e-12, atol=0)
    assert torch.equal(norm, ops.grad_norm(grads))


@pytest.mark.parametrize("shape", [(8, 1024, 128), (600, 100, 3), (2, 130, 2056)], ids=str)
def test_larger_block_float(shape):
    check_block_float(shape)


def test_block_float_in_a_graph():
    x, out = torch.randn(300, 64, 33), torch.empty(300, 64, 33)
    size = ops.block_float_bytes(64, 33)
    store, offsets = torch.empty(300 * size, dtype=torch.uint8), [i * size for i in range(300)]
    ops.pack_block_float(x, store, offsets)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.pack_block_float(x, store, offsets)
        ops.unpack_block_float(store, offsets, out)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(out, reference.block_float(x))


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
