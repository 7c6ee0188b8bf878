# SPDX-License-Identifier: Apache-2.0
"""The ops that one pass over memory limits, at small sizes, under the accuracy rule.

tests/cuda/test_bandwidth.py runs the same on a GPU, and larger sizes.
"""

import math
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch

from tests.ops import test_block_float as block_float
from tests.ops import test_resample as resample
from vision_accel import _C, ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KINDS = ["none", "gelu", "gelu_tanh", "quick_gelu", "silu"]


def check_layer_norm(shape, dtype, residual):
    x, r = (torch.randn(shape).to(dtype) for _ in range(2))
    w, b = (torch.randn(shape[-1]).to(dtype) for _ in range(2))
    if residual:
        ours = lambda x, w, b, r: ops.layer_norm(x, w, b, residual=r)  # noqa: E731
        theirs = lambda x, w, b, r: reference.layer_norm(x, w, b, residual=r)  # noqa: E731
        assert_accurate(ours, theirs, (x, w, b, r))
    else:
        assert_accurate(ops.layer_norm, reference.layer_norm, (x, w, b))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 768), (2, 5, 33), (40, 16), (2, 2056), (1, 2048)], ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_layer_norm(shape, dtype, residual):
    check_layer_norm(shape, dtype, residual)


def test_layer_norm_without_parameters_and_misaligned():
    x = torch.randn(7, 65)[:, 1:]
    assert_accurate(ops.layer_norm, reference.layer_norm, (x, None, None))


def check_activation(shape, dtype, kind):
    x = (torch.randn(shape) * 4).to(dtype)
    for argument in (x, x.flatten()[1:], x.t(), x[:0]):  # the second misaligned
        assert_accurate(ops.activation, reference.activation, (argument, kind))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_activation(kind, dtype):
    check_activation((4, 83), dtype, kind)  # 332 elements: a tail after whole packs


@pytest.mark.parametrize("kind", KINDS[1:])
def test_activation_at_the_limits(kind):
    x = torch.tensor([math.inf, -math.inf, math.nan, 1e30, -1e30, 0.0], requires_grad=True)
    y = ops.activation(x, kind)
    torch.testing.assert_close(
        y[[0, 1, 3, 4, 5]], torch.tensor([math.inf, 0, 1e30, 0, 0]), rtol=0, atol=1e-25
    )
    assert y[2].isnan()
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[[0, 1, 3, 4]], torch.tensor([1.0, 0, 1, 0]), rtol=0, atol=1e-25)
    assert x.grad[2].isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("patch", [4, 7, 14, 16, (2, 8)], ids=str)
def test_patchify(patch, dtype):
    ph, pw = (patch, patch) if isinstance(patch, int) else patch
    for x in (
        torch.randn(2, 3, 2 * ph, 3 * pw),
        torch.randn(2, 2 * ph, 3 * pw, 3).permute(0, 3, 1, 2),
        torch.randn(1, 2, 2 * ph, 3 * pw + 1)[..., 1:],
        torch.randn(0, 3, ph, pw),
    ):
        assert_accurate(ops.patchify, reference.patchify, (x.to(dtype), patch))


def check_cross_entropy(shape, dtype):
    logits, indices = torch.randn(shape).mul(3).to(dtype), torch.randint(shape[1], shape[:1])
    probabilities = torch.randn(shape).softmax(-1).to(dtype)
    probabilities[0] *= 2
    if shape[0] > 2:
        indices[1] = -100
    for target in (indices, probabilities):
        for smoothing, reduction in ((0.0, "mean"), (0.1, "mean"), (0.1, "sum"), (0.3, "none")):
            args = (logits, target, smoothing, reduction)
            assert_accurate(ops.cross_entropy, reference.cross_entropy, args)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 1000), (3, 7), (11, 64), (2, 2056), (1, 4099)], ids=str)
def test_cross_entropy(shape, dtype):
    check_cross_entropy(shape, dtype)


def test_cross_entropy_of_a_class_out_of_range_is_nan():
    logits = torch.randn(3, 5, requires_grad=True)
    loss = ops.cross_entropy(logits, torch.tensor([1, 7, -1]), reduction="none")
    assert loss.isfinite().tolist() == [True, False, False]
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all(1).tolist() == [True, False, False]


OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "grad_scale": 0.5}
SHAPES = [(3, 5), (1,), (40_001,), (0, 4), (), (16_384,), (2, 4, 3, 3), *([(9,)] * 70)]


def lists_for_adamw(shapes, dtype):
    """Parameters, gradients and both moments of AdamW, and the same in float64."""
    state = torch.float64 if dtype == torch.float64 else torch.float32
    lists = [[torch.randn(s).to(dtype) for s in shapes] for _ in range(2)]
    lists[0][2] = torch.randn(lists[0][2].numel() + 1).to(dtype)[1:]  # misaligned
    lists += [[torch.rand(s, dtype=state) for s in shapes] for _ in range(2)]
    return lists, [[t.double() for t in one] for one in lists]


def assert_close_lists(lists, exact):
    for ours, theirs in zip(lists, exact, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b.to(a.dtype), rtol=max(1e-6, torch.finfo(a.dtype).eps), atol=1e-7)


def check_adamw(shapes, dtype, known_to_the_gpu):
    lists, exact = lists_for_adamw(shapes, dtype)
    ops.adamw(*lists, step=torch.tensor(3) if known_to_the_gpu else 3, **OPTIONS)
    reference.adamw(*exact, step=3, **OPTIONS)
    assert_close_lists(lists, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("known_to_the_gpu", [False, True])
def test_adamw(dtype, known_to_the_gpu):
    check_adamw(SHAPES, dtype, known_to_the_gpu)


def test_adamw_of_mixed_dtypes_and_grad_norm():
    grads = [torch.randn(s).to(d) for d in DTYPES for s in ((100,), (20_000,), (7, 3))]
    expected = math.sqrt(sum(g.double().square().sum().item() for g in grads))
    assert ops.grad_norm(grads).item() == pytest.approx(expected, rel=1e-12)
    assert ops.grad_norm([]) == 0
    assert ops.grad_norm([torch.zeros(0)]) == 0
    states = [torch.float64 if g.dtype == torch.float64 else torch.float32 for g in grads]
    params = [torch.randn_like(g) for g in grads]
    m, v = ([torch.zeros(g.shape, dtype=s) for g, s in zip(grads, states, strict=True)] for _ in range(2))
    exact = [[t.double() for t in one] for one in (params, grads, m, v)]
    ops.adamw(params, grads, m, v, step=1, **OPTIONS)
    reference.adamw(*exact, step=1, **OPTIONS)
    assert_close_lists([params], exact[:1])


def check_block_float(shape):
    """Bytes and values of both devices, on rows in any order with strides of their own."""
    device = torch.empty(0).device
    x = block_float.rows_of_all_sizes(*shape[1:], rows=shape[0])
    x[0, -1, -1] = math.nan
    size = ops.block_float_bytes(*shape[1:])
    offsets = torch.randperm(shape[0], device="cpu").mul(size).tolist()
    results = []
    for on_cpu in (False, True):
        with cpu_kernels() if on_cpu else nullcontext():
            image = x.cpu() if on_cpu else x
            wide = torch.nn.functional.pad(image, (1, 2, 1, 1, 1, 1))[1:-1, 1:-1, 1:-2]
            store = torch.full((size * shape[0],), 170, dtype=torch.uint8, device=image.device)
            ops.pack_block_float(wide, store, offsets)
            out = torch.zeros(shape[1], shape[0], shape[2] + 1, device=image.device).transpose(0, 1)[..., 1:]
            ops.unpack_block_float(store, offsets, out)
            results.append((store.to(device), out.to(device)))
    (store, out), (expected_store, expected) = results
    assert torch.equal(store, expected_store)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


@contextmanager
def cpu_kernels():
    """CPU tensors by the CPU's kernels, also where the emulator would take them."""
    emulates = hasattr(_C, "set_simt_mode")
    if emulates:
        _C.set_simt_mode(False)
    yield
    if emulates:
        _C.set_simt_mode(True)


@pytest.mark.parametrize("shape", [(2, 33, 5), (1, 16, 130), (3, 1, 1), (300, 17, 3)], ids=str)
def test_block_float(shape):
    check_block_float(shape)


@pytest.mark.parametrize("seed", range(2))
def test_resample_equals_pillow(seed):
    rng = np.random.default_rng(seed)
    for _ in range(12):
        h, w, new_h, new_w = (int(n) for n in np.exp(rng.uniform(0, 4.2, 4)))
        image = resample.picture(rng, h, w, int(rng.choice([1, 3, 4])))
        top, left = int(rng.integers(new_h)), int(rng.integers(new_w))
        crop = (top, left, int(rng.integers(1, new_h - top + 1)), int(rng.integers(1, new_w - left + 1)))
        options = {
            "interpolation": str(rng.choice(list(resample.INTERPOLATIONS))),
            "flip": bool(rng.random() < 0.5),
        }
        options |= {"crop": crop if rng.random() < 0.5 else None}
        if image.shape[2] == 3 and rng.random() < 0.5:
            options |= {"mean": resample.MEAN, "std": resample.STD}
        resample.check(image, (new_h, new_w), **options)


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((3000, 2), (3, 5)),
        ((2, 3000), (5, 3)),
        ((60, 150), (224, 139)),
        ((2, 30_000), (2, 2)),
        ((1, 1), (5, 7)),
    ],
    ids=str,
)
@pytest.mark.parametrize("mirrored", [False, True])
def test_resample_sizes(source, size, mirrored):
    image = resample.picture(np.random.default_rng(0), *source, 4)[..., :3]
    resample.check(image, size, flip=mirrored)
    for vertical_first in (False, True):
        call = (
            3,
            [*size],
            [0.0, 0.0, float(source[1]), float(source[0])],
            [0, 0],
            mirrored,
            False,
            vertical_first,
            1,
        )
        results = []
        for emulated in (True, False):
            resample._C.set_simt_mode(emulated)
            out = np.zeros((*size, 3), np.uint8)
            workspace = np.empty(resample._C.resample_workspace(image, out, None, *call), np.uint8)
            resample._C.resample(image, out, None, workspace, *call, 0)
            results.append(out)
        assert np.array_equal(*results)
