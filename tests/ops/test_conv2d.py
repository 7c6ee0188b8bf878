# SPDX-License-Identifier: Apache-2.0
import gc
import importlib

import pytest
import torch

from vision_accel import ops
from vision_accel.ops import _pack_cache
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

conv2d_module = importlib.import_module("vision_accel.ops.conv2d")
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def case(b, h, w, c, n, kernel, dtype=torch.float32):
    i, j = (kernel, kernel) if isinstance(kernel, int) else kernel
    return (
        torch.randn(b, h, w, c).to(dtype),
        (torch.randn(n, c, i, j) / max(c * i * j, 1) ** 0.5).to(dtype),
        torch.randn(n).to(dtype),
    )


def conv(fn, **options):
    return lambda *args: fn(*args, **options)


def check(args, grads=True, **options):
    assert_accurate(conv(ops.conv2d, **options), conv(reference.conv2d, **options), args, grads=grads)


def with_threads(n, fn):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        return fn()
    finally:
        torch.set_num_threads(before)


GEOMETRIES = [
    # b, h, w, c, n, kernel, stride, padding
    (2, 5, 7, 3, 8, 3, 1, 1),
    (1, 9, 8, 70, 65, 3, 2, (0, 1, 0, 1)),
    (2, 4, 6, 17, 5, 1, 1, 0),
    (1, 8, 8, 5, 6, 4, 2, 1),
    (1, 6, 5, 4, 3, (2, 3), 1, (1, 0, 2, 0)),
    (1, 10, 11, 3, 2, 1, 3, 0),
    (1, 3, 3, 2, 4, 3, 1, (4, 0, 0, 5)),
    (2, 7, 8, 3, 4, 4, 3, (2, 0, 1, 3)),
    (1, 9, 7, 3, 4, (3, 2), 4, (0, 1, 1, 0)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_matches_reference(isa, geometry, dtype):
    *shape, stride, padding = geometry
    args = case(*shape, dtype)
    check(args, stride=stride, padding=padding)  # packs on the fly
    check(args, grads=False, stride=stride, padding=padding)  # packed before
    check((*args[:2], None), stride=stride, padding=padding)


def test_several_blocks_in_every_direction(isa):
    check(case(1, 26, 17, 90, 140, 3), padding=1)


# At least 24 channels on both sides: Winograd's algorithm.
WINOGRAD = [
    # b, h, w, c, n, padding
    (2, 5, 7, 32, 70, 1),
    (1, 1, 1, 40, 33, 1),
    (1, 2, 9, 37, 64, (0, 1, 2, 1)),
    (1, 4, 4, 24, 25, 2),
    (1, 3, 3, 33, 32, 0),
    (1, 4, 3, 32, 40, (4, 0, 0, 5)),
    (3, 24, 26, 400, 130, 1),  # several blocks of channels, panels and runs of tiles
]


@pytest.mark.parametrize("geometry", WINOGRAD, ids=str)
def test_winograd_matches_reference(isa, geometry):
    b, h, w, c, n, padding = geometry
    x, weight, bias = args = case(b, h, w, c, n, 3)
    check(args, grads=False, padding=padding)
    check((x, weight, None), grads=False, padding=padding)
    residual = torch.randn(reference.conv2d(*args, padding=padding).shape)
    check((x.transpose(1, 2), weight, bias), grads=False, padding=1)
    check((*args, "silu", residual), grads=False, padding=padding)
    if padding == 1:
        check((*args, "none", residual.transpose(1, 2).contiguous().transpose(1, 2)), False, padding=1)
        assert_accurate(ops.upsample_conv2d, reference.upsample_conv2d, args, grads=False)


def test_when_winograd_is_taken(monkeypatch):
    calls = []
    real = conv2d_module._C.conv2d_winograd
    monkeypatch.setattr(conv2d_module._C, "conv2d_winograd", lambda *a: calls.append(a) or real(*a))
    x, w, b = case(1, 6, 6, 32, 32, 3)
    check((x, w, b), grads=False, padding=1)
    assert len(calls) == 1
    check((x, w, b), padding=1)  # a weight that is trained, for few pixels
    check((x.double(), w.double(), b.double()), grads=False, padding=1)
    check((x[..., :23], w[:, :23], b), grads=False, padding=1)
    check((x, w, b), grads=False, padding=1, stride=2)
    assert len(calls) == 1


@pytest.mark.parametrize("geometry", WINOGRAD[:-1], ids=str)
def test_winograd_in_training(isa, geometry, monkeypatch):
    monkeypatch.setattr(conv2d_module._winograd, "_LEAST_TRAINED_PIXELS", 0)
    b, h, w, c, n, padding = geometry
    x, weight, _ = args = case(b, h, w, c, n, 3)
    check(args, padding=padding)  # with a padding above 2, dx would need a negative one
    check((x.transpose(1, 2), weight.transpose(2, 3), None), padding=1)
    if padding == 1:
        assert_accurate(ops.upsample_conv2d, reference.upsample_conv2d, args)


def test_winograd_gradients_in_parts(isa):
    """Over 512 tiles they are summed up in parts: with any number of threads the same bits."""
    args = case(3, 46, 45, 33, 40, 3)
    check(args, padding=1)
    dy = torch.randn(3, 92, 90, 40)

    def run():
        leaves = [t.clone().requires_grad_() for t in args]
        ops.conv2d(*leaves, padding=1).backward(dy[:, :46, :45])
        ops.upsample_conv2d(*leaves).backward(dy)
        return [t.grad for t in leaves]

    one, *others = (with_threads(n, run) for n in (1, 2, 5))
    assert all(torch.equal(p, q) for other in others for p, q in zip(one, other, strict=True))


@pytest.mark.parametrize("channels", [8, 40])
@pytest.mark.parametrize("borders", [(True, False), (False, True), (False, False)], ids=str)
def test_rows_of_an_upsampled_image(isa, borders, channels):
    """Rows inside of an image, from neighbours that it has, are those of the whole."""
    x, w, b = case(2, 5, 6, channels, channels, 3)
    first, last = 2 * (1 - borders[0]), 10 - 2 * (1 - borders[1])
    dy = torch.randn(2, last - first, 12, channels)

    def run(fn):
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        y = fn(*leaves)
        y.backward(dy)
        return [y.detach(), *(t.grad for t in leaves)]

    got = run(lambda *a: ops.upsample_conv2d(*a, borders=borders))
    want = run(lambda *a: ops.upsample_conv2d(*a)[:, first:last])
    assert all(torch.equal(p, q) for p, q in zip(got, want, strict=True))
    frozen = ops.upsample_conv2d(x, w, b, borders=borders)
    assert torch.equal(frozen, ops.upsample_conv2d(x, w, b)[:, first:last])
    with pytest.raises(ValueError, match="has no rows but the neighbours"):
        ops.upsample_conv2d(x[:, : 1 - sum(borders)], w, b, borders=borders)


def test_gradients_of_some_arguments():
    """What needs no gradient is not computed, with Winograd's algorithm and without."""
    for channels in (8, 40):
        x, w, b = case(2, 9, 8, channels, channels, 3)
        for chosen in ((0,), (1,), (2,), (0, 2), (1, 2)):
            for fn in (lambda *a: ops.conv2d(*a, padding=1), ops.upsample_conv2d):
                leaves = [t.clone().requires_grad_(i in chosen) for i, t in enumerate((x, w, b))]
                every = [t.clone().requires_grad_() for t in (x, w, b)]
                fn(*leaves).square().sum().backward()
                fn(*every).square().sum().backward()
                for i, (some, full) in enumerate(zip(leaves, every, strict=True)):
                    assert (some.grad is not None) == (i in chosen)
                    if i in chosen:
                        torch.testing.assert_close(some.grad, full.grad, rtol=1e-3, atol=1e-3)


def test_winograd_refuses_another_dtype_of_the_weight():
    x, w, b = case(1, 6, 6, 32, 32, 3)
    w.requires_grad_()
    with pytest.raises(TypeError, match="weight must be float32, got float64"):
        ops.conv2d(x, w.double(), b, padding=1)


def test_winograd_is_independent_of_the_batch_and_of_threads(isa):
    x, w, b = case(3, 13, 11, 200, 70, 3)
    y, *others = (with_threads(t, lambda: ops.conv2d(x, w, b, padding=1)) for t in (1, 2, 5))
    assert all(torch.equal(y, other) for other in others)
    assert torch.equal(y[1:2], ops.conv2d(x[1:2], w, b, padding=1))
    up = ops.upsample_conv2d(x, w, b)
    assert torch.equal(up[2:], with_threads(5, lambda: ops.upsample_conv2d(x[2:], w, b)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["none", "silu", "gelu"])
def test_epilogue(isa, activation, dtype):
    x, w, b = case(2, 5, 6, 9, 70, 3, dtype)
    residual = torch.randn(2, 5, 6, 70).to(dtype)
    for grads in (True, False):
        check((x, w, b, activation, residual), grads, padding=1)
        check((x, w, b, activation), grads, padding=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 7, 3, 8), (1, 1, 1, 2, 3), (1, 9, 8, 70, 65)], ids=str)
def test_upsampling(isa, shape, dtype):
    args = case(*shape, 3, dtype)
    assert_accurate(ops.upsample_conv2d, reference.upsample_conv2d, args)
    assert_accurate(ops.upsample_conv2d, reference.upsample_conv2d, args, grads=False)


def test_a_weight_serves_both_convolutions():
    x, w, b = case(1, 4, 4, 3, 5, 3)
    for _ in range(2):
        assert_accurate(ops.upsample_conv2d, reference.upsample_conv2d, (x, w, b), grads=False)
        check((x, w, b), grads=False, padding=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_wide_stream(isa, dtype):
    """A residual stream in float32 beside 16-bit weights does not overflow, and loses nothing."""
    x, w, b = case(1, 5, 6, 8, 9, 3, dtype)
    stream = torch.randn(1, 5, 6, 9) * 1e6
    wide = reference.conv2d(x.float(), w.float(), b.float(), padding=1)
    y = ops.conv2d(x, w, b, residual=stream, padding=1)
    assert y.dtype == torch.float32
    assert torch.equal(y, stream + ops.conv2d(x, w, b, padding=1, out_dtype=torch.float32))
    torch.testing.assert_close(ops.conv2d(x, w, b, padding=1, out_dtype=torch.float32), wide)
    big = x.float() * 1e6  # float32 images, 16-bit weights
    want = reference.conv2d(big, w.float(), b.float(), padding=1)
    torch.testing.assert_close(ops.conv2d(big, w, b, padding=1), want, rtol=1e-4, atol=1.0)
    w.requires_grad_()
    ops.conv2d(big, w, b, padding=1).sum().backward()
    assert w.grad.dtype == dtype
    up = reference.upsample_conv2d(big, w.detach().float(), b.float())
    torch.testing.assert_close(ops.upsample_conv2d(big, w.detach(), b), up, rtol=1e-4, atol=1.0)


@pytest.mark.parametrize("shape", [(0, 4, 4, 3, 5), (2, 4, 4, 0, 5), (2, 4, 4, 3, 0)], ids=str)
def test_empty(shape):
    x, w, b = leaves = [t.requires_grad_() for t in case(*shape, 3)]
    y = ops.conv2d(x, w, b, padding=1)
    y.sum().backward()
    assert torch.equal(y, b.expand(shape[0], 4, 4, shape[4]))
    assert torch.equal(b.grad, torch.full_like(b, shape[0] * 16.0))
    assert all(not t.grad.any() for t in (x, w))
    with torch.no_grad():
        assert torch.equal(y, ops.conv2d(*leaves, padding=1))
        assert ops.upsample_conv2d(*leaves).shape == (shape[0], 8, 8, shape[4])


def test_non_contiguous(isa):
    _, w, b = case(1, 1, 1, 6, 7, 3)
    base = torch.randn(2, 10, 12, 6)
    for x in (
        base[:, ::2],
        base[:, :, 1::3],
        base.transpose(1, 2),
        torch.randn(2, 6, 5, 4).permute(0, 2, 3, 1),
    ):
        check((x, w, b), padding=1)
        assert_accurate(ops.upsample_conv2d, reference.upsample_conv2d, (x, w, b))
    check((base, w.to(memory_format=torch.channels_last), b), padding=1)
    check((base, w, b, "none", torch.randn(2, 7, 12, 10).permute(0, 3, 2, 1)), padding=1)


def test_an_image_is_independent_of_the_batch_and_of_threads(isa):
    x, w, b = case(3, 13, 11, 30, 70, 3)
    dy = torch.randn(3, 13, 11, 70)
    results = []
    for threads in (1, 2):

        def run():
            leaves = [t.clone().requires_grad_() for t in (x, w, b)]
            y = ops.conv2d(*leaves, padding=1)
            y.backward(dy)
            with torch.no_grad():
                up = ops.upsample_conv2d(x, w, b)
                return [y.detach(), up, ops.conv2d(x, w, b, padding=1), *(t.grad for t in leaves)]

        results.append(with_threads(threads, run))
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))
    y, up, packed = results[0][:3]
    assert torch.equal(y, packed)
    assert torch.equal(y[1:2], ops.conv2d(x[1:2], w, b, padding=1))
    assert torch.equal(up[1:2], ops.upsample_conv2d(x[1:2], w, b))


def test_packed_weight_follows_its_weight():
    x, w, b = case(1, 4, 4, 3, 5, 3)
    gc.collect()
    before = len(_pack_cache._entries)
    with torch.no_grad():
        first = ops.conv2d(x, w, b)
        w.mul_(2)
        assert torch.allclose(ops.conv2d(x, w, b) - b, 2 * (first - b), atol=1e-5)
    assert len(_pack_cache._entries) == before + 1
    del w
    gc.collect()
    assert len(_pack_cache._entries) == before


def test_nan_stays_under_its_window():
    x, w, b = case(1, 9, 9, 4, 5, 3)
    x[0, 4, 4, 1] = float("nan")
    y = ops.conv2d(x, w, b, padding=1).isnan().any(-1)[0]
    assert y[3:6, 3:6].all()
    assert y.sum() == 9


def test_gradcheck():
    x, w, b = (t.double().requires_grad_() for t in case(1, 4, 5, 2, 3, 3))
    residual = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    options = {"stride": 2, "padding": (0, 1, 0, 1)}
    assert torch.autograd.gradcheck(conv(ops.conv2d, **options), (x, w, b, "silu", residual))
    assert torch.autograd.gradcheck(ops.upsample_conv2d, (x, w, b))


def test_opcheck():
    x, w, b = (t.requires_grad_() for t in case(1, 4, 5, 2, 3, 3))
    args = (x, w, b, None, "none", 2, [0, 1, 0, 1], torch.float32, True)
    torch.library.opcheck(torch.ops.vision_accel.conv2d.default, args)
    torch.library.opcheck(torch.ops.vision_accel.upsample_conv2d.default, (x, w, b, True, True, False))


def test_compiles_whole():
    args = case(1, 4, 5, 2, 3, 3)
    compiled = torch.compile(conv(ops.conv2d, padding=1), fullgraph=True, backend="aot_eager")
    assert_accurate(compiled, conv(reference.conv2d, padding=1), args)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(4, 4, 3)}, ValueError, r"x must be \[B, h, w, C\], got \[4, 4, 3\]"),
        (
            {"weight": torch.ones(5, 2, 3, 3)},
            ValueError,
            r"weight must be \[N, 3, i, j\] .* got \[5, 2, 3, 3\]",
        ),
        ({"bias": torch.ones(4)}, ValueError, r"conv2d: bias must be \[5\], got \[4\]"),
        ({"weight": torch.ones(5, 3, 3, 3).double()}, TypeError, "weight must be float32, got float64"),
        ({"bias": torch.ones(5).double()}, TypeError, "bias must be float32, got float64"),
        ({"x": torch.ones(1, 4, 4, 3).int()}, TypeError, "must be float32"),
        ({"residual": torch.ones(1, 4, 4, 5)}, ValueError, r"residual must be \[1, 2, 2, 5\]"),
        ({"stride": 0}, ValueError, "stride must be positive, got 0"),
        ({"padding": -1}, ValueError, "padding must be"),
        ({"padding": (1, 2)}, ValueError, "padding must be"),
        ({"x": torch.ones(1, 2, 4, 3)}, ValueError, "smaller than the kernel"),
        ({"activation": "relu"}, ValueError, "activation must be none, gelu"),
    ],
)
def test_bad_input(change, error, message):
    args = {"x": torch.ones(1, 4, 4, 3), "weight": torch.ones(5, 3, 3, 3), "bias": torch.ones(5)} | change
    with pytest.raises(error, match=message):
        ops.conv2d(**args)


def test_bad_input_of_the_upsampling():
    with pytest.raises(
        ValueError, match=r"upsample_conv2d: weight must be \[N, 3, 3, 3\], got \[5, 3, 1, 1\]"
    ):
        ops.upsample_conv2d(torch.ones(1, 4, 4, 3), torch.ones(5, 3, 1, 1))
