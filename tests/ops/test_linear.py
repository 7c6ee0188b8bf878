# SPDX-License-Identifier: Apache-2.0
import copy
import gc

import pytest
import torch

from vision_accel import _C, ops
from vision_accel.ops import _pack_cache
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ACTIVATIONS = ["none", "gelu", "gelu_tanh", "quick_gelu", "silu"]


def case(m, n, k, dtype=torch.float32, activation="none", residual=False, scale=False):
    m = m if isinstance(m, tuple) else (m,)
    return (
        torch.randn(*m, k).to(dtype),
        (torch.randn(n, k) / max(k, 1) ** 0.5).to(dtype),
        torch.randn(n).to(dtype),
        activation,
        torch.randn(*m, n).to(dtype) if residual else None,
        torch.randn(n).to(dtype) if scale else None,
    )


def with_threads(n, fn):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        return fn()
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def packs():
    """The number of packed copies made so far, as a function."""
    gc.collect()
    before = len(_pack_cache._entries)
    return lambda: len(_pack_cache._entries) - before


# Values and gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (2, 5, 7), (5, 2, 63), (7, 63, 65), (63, 65, 5), (65, 130, 197), (197, 7, 2), (13, 65, 900)],
    ids=str,
)
def test_matches_reference(isa, shape, dtype):
    assert_accurate(ops.linear, reference.linear, case(*shape, dtype))  # packs on the fly
    assert_accurate(ops.linear, reference.linear, case(*shape, dtype), grads=False)  # packed before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue(isa, activation, dtype):
    for residual in (False, True):
        for scale in (False, True):
            args = case((3, 9), 70, 20, dtype, activation, residual, scale)
            assert_accurate(ops.linear, reference.linear, args)


@pytest.mark.parametrize("shape", [(400, 520, 100), (403, 1100, 390), (3, 2, 1500)], ids=str)
def test_several_blocks_in_every_direction(isa, shape):
    assert_accurate(ops.linear, reference.linear, case(*shape, activation="gelu", residual=True))


def test_many_rows():
    assert_accurate(ops.linear, reference.linear, case(100_003, 3, 5))


@pytest.mark.parametrize("shape", [(5, 7, 0), (0, 5, 3), (3, 0, 4), ((2, 0), 4, 3), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_empty(shape, activation):
    args = case(*shape, activation=activation, residual=True, scale=True)
    assert_accurate(ops.linear, reference.linear, args)
    assert_accurate(ops.linear, reference.linear, args, grads=False)


def test_non_contiguous(isa):
    base = torch.randn(6, 10, 64)
    w = torch.randn(20, 64) / 8
    for x in (base[:, ::2], base.transpose(0, 1), base[..., ::2], base[:, 0], base[..., :1], base[0, 0]):
        assert_accurate(ops.linear, reference.linear, (x, w[:, : x.shape[-1]], torch.randn(20)))
        assert_accurate(ops.linear, reference.linear, (x, torch.randn(x.shape[-1], 20).t()))
    x, _, _, _, residual, _ = case((4, 6), 20, 64, residual=True)
    assert_accurate(ops.linear, reference.linear, (x, w[::2], None, "silu", residual[..., ::2]))


def test_gradient_that_is_not_contiguous():
    x, w, b, *_ = case((3, 4), 6, 5)
    assert_accurate(
        lambda *a: ops.linear(*a).sum((0, 1)), lambda *a: reference.linear(*a).sum((0, 1)), (x, w, b)
    )


def test_patch_kernel():
    x, w = torch.randn(2, 9, 3 * 4 * 5), torch.randn(10, 3, 4, 5)
    assert_accurate(ops.linear, reference.linear, (x, w, torch.randn(10)))
    channels_last = w.to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(ops.linear(x, w), ops.linear(x, channels_last))


@pytest.mark.parametrize("rows", [(0, 64), (64, 192), (70, 71), (5, 140), (9, 9)], ids=str)
def test_rows(isa, rows):
    def part(fn):
        return lambda x, w, b, s, r: fn(x, w, b, "gelu", r, s, rows=rows)

    x, w, b, _, _, s = case((2, 7), 192, 33, scale=True)
    residual = torch.randn(2, 7, rows[1] - rows[0])
    assert_accurate(part(ops.linear), part(reference.linear), (x, w, b, s, residual))
    with torch.no_grad():
        whole = ops.linear(x, w, b, "gelu")
        assert torch.equal(ops.linear(x, w, b, "gelu", rows=rows), whole[..., slice(*rows)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_residual_and_scale_beside_16_bit(dtype):
    x, w, b, *_ = case((3, 7), 40, 30, dtype)
    wide = (torch.randn(3, 7, 40), torch.randn(40))

    def call(fn):
        return lambda x, w, b, r, s: fn(x, w, b, "gelu", r, s)

    assert ops.linear(x, w, b, "gelu", *wide).dtype == torch.float32
    assert_accurate(call(ops.linear), call(reference.linear), (x, w, b, *wide))


def test_only_the_gradients_that_are_needed():
    x, w, b, *_ = case(4, 6, 5)
    for needed in range(3):
        inputs = [x.clone(), w.clone(), b.clone()]
        inputs[needed].requires_grad_()
        ops.linear(*inputs, "gelu").sum().backward()
        expected = inputs[needed].detach().clone().requires_grad_()
        again = [*inputs]
        again[needed] = expected
        reference.linear(*again, "gelu").sum().backward()
        torch.testing.assert_close(inputs[needed].grad, expected.grad)
        assert all(t.grad is None for i, t in enumerate(inputs) if i != needed)


def test_gradcheck():
    x, w, b, _, r, s = (
        t if t is None or isinstance(t, str) else t.requires_grad_()
        for t in case((2, 3), 4, 5, torch.float64, "none", True, True)
    )
    for activation in ACTIVATIONS:
        assert torch.autograd.gradcheck(
            lambda x, w, b, r, s, a=activation: ops.linear(x, w, b, a, r, s), (x, w, b, r, s)
        )
    assert torch.autograd.gradcheck(lambda x, w, b: ops.linear(x, w, b, rows=(1, 3)), (x, w, b))


# Determinism ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_independent_of_the_batch(isa, dtype):
    x, w, b, activation, r, s = case(413, 130, 800, dtype, "gelu", True, True)
    with torch.no_grad():
        whole = ops.linear(x, w, b, activation, r, s)
        for begin, end in ((0, 1), (17, 18), (5, 13), (100, 297), (412, 413)):
            part = ops.linear(x[begin:end], w, b, activation, r[begin:end], s)
            assert torch.equal(whole[begin:end], part)


def test_packing_does_not_change_the_result(isa):
    x, w, b, *_ = case(29, 130, 800)
    trained = ops.linear(x, w.clone().requires_grad_(), b)
    with torch.no_grad():
        assert torch.equal(ops.linear(x, w, b), trained)
        assert torch.equal(ops.linear(x, w.t().contiguous().t(), b), trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("m", [7, 601])
def test_threads_do_not_change_the_result(isa, m, dtype):
    args = case(m, 200, 500, dtype, "gelu", True, True)
    dy = torch.randn(m, 200).to(dtype)

    def run():
        leaves = [a if a is None or isinstance(a, str) else a.clone().requires_grad_() for a in args]
        y = ops.linear(*leaves)
        y.backward(dy)
        return [y.detach()] + [t.grad for t in leaves if isinstance(t, torch.Tensor)]

    alone, *others = (with_threads(n, run) for n in (1, 2, 3, 8))
    for other in others:
        assert all(torch.equal(p, q) for p, q in zip(alone, other, strict=True))


def test_nan_and_infinity_stay_where_they_are(isa):
    x, w, *_ = case(9, 70, 50)
    x[3, 7], x[5, 0] = float("nan"), float("inf")
    y = ops.linear(x, w)
    assert y[3].isnan().all()
    assert not y[5].isfinite().any()
    assert y[[0, 1, 2, 4, 6, 7, 8]].isfinite().all()


# The cache of packed weights -----------------------------------------------------------------------------


def check_follows(edit, x, w):
    """The result is that of the weight as it is, before and after an edit."""
    for step in (lambda: None, edit):
        step()
        torch.testing.assert_close(ops.linear(x, w), reference.linear(x, w), atol=1e-5, rtol=1e-5)


def edit_in_place(w):
    with torch.no_grad():
        w[0, 0] += 1


def edit_data(w):
    w.data.mul_(1.5)


def swap_data(w):
    w.data = torch.randn_like(w)


def step_of_an_optimizer(w):
    w.grad = torch.randn_like(w)
    torch.optim.SGD([w], lr=0.1).step()
    w.grad = None


def ema_through_data(w):
    w.data.lerp_(torch.randn_like(w), 1e-3)


@pytest.mark.parametrize(
    "edit", [edit_in_place, edit_data, swap_data, step_of_an_optimizer, ema_through_data]
)
def test_edits_of_the_weight_are_seen(packs, edit):
    x, w = torch.randn(3, 40), torch.nn.Parameter(torch.randn(70, 40))
    with torch.no_grad():
        check_follows(lambda: edit(w), x, w)
    assert packs() == 1


def test_load_state_dict_and_deepcopy_are_seen(packs):
    x, layer = torch.randn(3, 40), torch.nn.Linear(40, 70, bias=False)
    with torch.no_grad():
        check_follows(
            lambda: layer.load_state_dict(torch.nn.Linear(40, 70, bias=False).state_dict()), x, layer.weight
        )
        twin = copy.deepcopy(layer)
        check_follows(lambda: twin.weight.mul_(2), x, twin.weight)
        check_follows(lambda: None, x, layer.weight)
        assert packs() == 2
        check_follows(lambda: layer.double().float(), x, layer.weight)
        check_follows(twin.bfloat16, x, layer.weight)
        assert ops.linear(x.bfloat16(), twin.weight).dtype == torch.bfloat16


def test_inference_tensors(packs):
    with torch.inference_mode():
        x, w = torch.randn(3, 40), torch.randn(70, 40)
        check_follows(lambda: w.mul_(2), x, w)
    assert packs() == 1


def test_a_copy_is_made_once_and_freed_with_its_weight(packs):
    x, w = torch.randn(3, 40), torch.randn(70, 40)
    ops.linear(x, w)
    packed = _pack_cache.packed_weight(w)
    ops.linear(x, w)
    ops.linear(x, w, rows=(3, 9))
    assert _pack_cache.packed_weight(w) is packed
    assert packs() == 1
    del w
    assert packs() == 0


def test_training_keeps_no_copy(packs):
    x, w = torch.randn(3, 40), torch.nn.Parameter(torch.randn(70, 40))
    with torch.no_grad():
        ops.linear(x, w)
    assert packs() == 1
    ops.linear(x, w).sum().backward()
    assert packs() == 0


def test_each_isa_has_its_own_layout():
    x, w, *_ = case(5, 100, 40)
    before = _C.active_isa()
    for name in [*_C.available_isas(), *_C.available_isas()]:
        _C.set_isa(name)
        torch.testing.assert_close(ops.linear(x, w), reference.linear(x, w))
    _C.set_isa(before)


# torch around it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("extras", [False, True])
def test_opcheck(extras):
    x, w, b, activation, r, s = case((3, 4), 6, 5, activation="gelu", residual=extras, scale=extras)
    for t in (x, w, b, r, s):
        if t is not None:
            t.requires_grad_()
    args = (x, w, b, r, s, activation, 0, 6, True, True)
    torch.library.opcheck(torch.ops.vision_accel.linear.default, args)
    inference = [a.detach() if isinstance(a, torch.Tensor) else a for a in args[:-2]]
    torch.library.opcheck(torch.ops.vision_accel.linear.default, (*inference, False, False))


def test_compiles_whole(packs):
    args = case((4, 3), 32, 16, activation="gelu", residual=True, scale=True)
    compiled = torch.compile(lambda *a: ops.linear(*a).relu(), fullgraph=True, backend="aot_eager")
    assert_accurate(compiled, lambda *a: reference.linear(*a).relu(), args)
    with torch.no_grad():
        assert_accurate(compiled, lambda *a: reference.linear(*a).relu(), args, grads=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    x, w, b, *_ = case((3, 4), 20, 16)
    layer_scale, residual = torch.randn(20), torch.randn(3, 4, 20)
    leaves = [t.clone().requires_grad_() for t in (x, w, b)]
    with torch.autocast("cpu", dtype):
        y = ops.linear(*leaves, "gelu")
        stream = ops.linear(x, w, b, "none", residual, layer_scale)
        assert ops.linear(x.double(), w.double()).dtype == torch.float64
    y.float().sum().backward()
    assert y.dtype == dtype
    assert torch.equal(y, ops.linear(x.to(dtype), w.to(dtype), b.to(dtype), "gelu"))
    assert stream.dtype == torch.float32  # as a sum of a 16-bit and a float32 tensor has
    assert all(t.grad.dtype == torch.float32 for t in leaves)


def test_meta_tensors():
    args = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in case((2, 3), 5, 4, residual=True)]
    y = ops.linear(*args)
    assert y.is_meta
    assert y.shape == (2, 3, 5)


def test_checkpointing_recomputes():
    x, w, b, *_ = case(5, 20, 16)
    x.requires_grad_()
    y = torch.utils.checkpoint.checkpoint(ops.linear, x, w, b, "gelu", use_reentrant=False)
    y.sum().backward()
    expected = x.detach().clone().requires_grad_()
    reference.linear(expected, w, b, "gelu").sum().backward()
    torch.testing.assert_close(x.grad, expected.grad)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.ones(5, 3)}, ValueError, r"linear: weight must be \[N, 4\] .*, got \[5, 3\]"),
        ({"weight": torch.ones(4)}, ValueError, r"linear: weight must be \[N, 4\] .*, got \[4\]"),
        ({"weight": torch.ones(5, 4).double()}, TypeError, "linear: weight must be float32, got float64"),
        ({"weight": torch.ones(5, 4).int()}, TypeError, "linear: weight must be float32.*, got int32"),
        ({"x": torch.ones(3, 4).int()}, TypeError, "linear: x must be float32 or .*, got int32"),
        ({"x": torch.tensor(1.0)}, ValueError, "at least 1 dimension"),
        ({"bias": torch.ones(4)}, ValueError, r"linear: bias must be \[5\], got \[4\]"),
        ({"bias": torch.ones(5).half()}, TypeError, "linear: bias must be float32, got float16"),
        ({"scale": torch.ones(5, 1)}, ValueError, r"linear: scale must be \[5\], got \[5, 1\]"),
        ({"residual": torch.ones(5)}, ValueError, r"linear: residual must be \[3, 5\], got \[5\]"),
        ({"residual": torch.ones(3, 5).half()}, TypeError, "linear: residual must be float32, got float16"),
        ({"activation": "relu"}, ValueError, "linear: activation must be none, gelu, .*, got 'relu'"),
        ({"rows": (2, 6)}, ValueError, r"linear: rows must lie in \[0, 5\], got \(2, 6\)"),
        ({"rows": (3, 2)}, ValueError, r"linear: rows must lie in \[0, 5\], got \(3, 2\)"),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_bad_input(change, error, message, training):
    args = {"x": torch.ones(3, 4), "weight": torch.ones(5, 4), "bias": None} | change
    if training and args["weight"].is_floating_point():
        args["weight"] = args["weight"].clone().requires_grad_()
    with pytest.raises(error, match=message):
        ops.linear(**args)
