# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.nn import functional as F

from vision_accel import _C, ops
from vision_accel.ops.contrastive_loss import sigmoid_rows, softmax_parts
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SIZES = [(1, 1), (2, 3), (7, 24), (65, 40), (385, 17)]  # rows are computed 384 at a time
KINDS = pytest.mark.parametrize("bias", [None, -5.0], ids=["softmax", "sigmoid"])


def inputs(batch, width, bias=None, dtype=torch.float32, scale=20.0):
    x, y = (F.normalize(torch.randn(batch, width), dim=-1).to(dtype) for _ in range(2))
    return [x, y, *(torch.tensor(v, dtype=torch.float32) for v in (scale, bias) if v is not None)]


@KINDS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_plain_loss(isa, dtype, bias):
    for batch, width in SIZES if dtype == torch.float32 else SIZES[:-1]:
        args = inputs(batch, width, bias, dtype)
        assert_accurate(ops.contrastive_loss, reference.contrastive_loss, args)


@KINDS
def test_large_logits(isa, bias):
    args = inputs(400, 24, bias, scale=100.0)
    args[1] = args[0]  # every pair fits, and the loss is near 0
    assert_accurate(ops.contrastive_loss, reference.contrastive_loss, args)
    args[2] = torch.tensor(3e3)
    loss = ops.contrastive_loss(*[a.requires_grad_() for a in args])
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, args))


def test_small_sigmoid_losses_keep_their_digits(isa):
    """log(1 + exp(-12)), which 1 + exp(-12) in float32 has not."""
    args = inputs(5, 3, -12.0, scale=0.0)
    rows = sigmoid_rows(*args, -1)
    torch.testing.assert_close(rows, 5 * F.softplus(torch.full((5,), -12.0)), rtol=1e-5, atol=0)


@KINDS
def test_parts_of_a_batch_make_the_whole(isa, bias):
    """What several processes compute, each for some of the images, joined."""
    args = inputs(90, 16, bias, torch.float64)
    x, y, *scalars = args
    whole = reference.contrastive_loss(*args)
    if bias is not None:
        blocks = [
            (x[i : i + 30], y[j : j + 30], 0 if i == j else -1) for i in (0, 30, 60) for j in (0, 30, 60)
        ]
        total = sum(sigmoid_rows(a, b, *scalars, first).sum() for a, b, first in blocks)
        torch.testing.assert_close(total / 90, whole)
        return
    parts = [softmax_parts(x[i : i + 30], y, *scalars, i) for i in (0, 30, 60)]
    columns = torch.stack([top + columns for _, _, top, columns in parts]).logsumexp(0)
    own = torch.cat([p[1] for p in parts])
    torch.testing.assert_close((torch.cat([p[0] for p in parts]) + columns - own).mean() / 2, whole)


@KINDS
def test_no_images_no_texts_no_width(isa, bias):
    x, y, *scalars = inputs(4, 3, bias)
    if bias is None:
        rows, own, top, columns = softmax_parts(x[:0], y, *scalars, 2)
        assert rows.shape == own.shape == (0,)
        assert torch.equal(top + columns, torch.full((4,), -torch.inf))
    else:
        assert sigmoid_rows(x[:0], y, *scalars, 0).shape == (0,)
        assert torch.equal(sigmoid_rows(x, y[:0], *scalars, -1), torch.zeros(4))
        x.requires_grad_()
        y.requires_grad_()
        (sigmoid_rows(x[:0], y, *scalars, 0).sum() + sigmoid_rows(x, y[:0], *scalars, -1).sum()).backward()
        assert torch.equal(x.grad, torch.zeros(4, 3))
        assert torch.equal(y.grad, torch.zeros(4, 3))
    nothing = torch.zeros(4, 0)
    torch.testing.assert_close(
        ops.contrastive_loss(nothing, nothing, *scalars),
        reference.contrastive_loss(nothing, nothing, *scalars),
    )


@KINDS
def test_any_strides(bias):
    x, y, *scalars = inputs(50, 40, bias)
    for a, b in ((x[:, :20], y[:, 20:]), (x[:, ::2], y[:, 1::2]), (x[::2], y[::2]), (x.T, y.T)):
        assert_accurate(ops.contrastive_loss, reference.contrastive_loss, (a, b, *scalars))


@KINDS
def test_same_bits_for_any_threads(isa, bias):
    threads = torch.get_num_threads()
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        torch.manual_seed(0)
        args = [a.requires_grad_() for a in inputs(500, 72, bias)]
        loss = ops.contrastive_loss(*args)
        results.append([loss.detach(), *torch.autograd.grad(loss, args)])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_16_bit_embeddings_under_autocast():
    low = [t.bfloat16().requires_grad_() for t in inputs(33, 24)[:2]]
    scale = torch.tensor(20.0, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ops.contrastive_loss(*low, scale)
    torch.testing.assert_close(loss, reference.contrastive_loss(*low, scale), rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad(loss, [*low, scale])
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.bfloat16, torch.float32]


@KINDS
def test_gradcheck(bias):
    args = [a.double().requires_grad_() for a in inputs(5, 3, bias, scale=3.0)]
    assert torch.autograd.gradcheck(ops.contrastive_loss, args)


@KINDS
def test_opcheck(bias):
    args = [a.requires_grad_() for a in inputs(6, 4, bias)]
    torch.library.opcheck(
        torch.ops.vision_accel.contrastive_loss.default, (*args, *([None] if bias is None else []), 0)
    )


@KINDS
def test_compiles_whole(bias):
    compiled = torch.compile(
        lambda x, *a: ops.contrastive_loss(x * 2, *a), fullgraph=True, backend="aot_eager"
    )
    assert_accurate(compiled, lambda x, *a: reference.contrastive_loss(x * 2, *a), inputs(9, 4, bias))


@KINDS
def test_all_logits_are_never_stored(bias):
    args = [a.requires_grad_() for a in inputs(4096, 8, bias)]
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(t, torch.Tensor):
                    largest = max(largest, t.untyped_storage().nbytes())
            return out

    with Watch():
        ops.contrastive_loss(*args).backward()
    # The workspace is made below the dispatcher.
    workspace = 4 * _C.contrastive_loss_workspace(4096, 4096)
    assert max(largest, workspace) < 4096 * 4096 * 4 / 8


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"text": torch.zeros(3, 3)}, ValueError, r"of one shape, B > 0, got \[2, 3\] and \[3, 3\]"),
        ({"image": torch.zeros(0, 3), "text": torch.zeros(0, 3)}, ValueError, r"got \[0, 3\]"),
        ({"image": torch.zeros(3), "text": torch.zeros(3)}, ValueError, r"got \[3\] and \[3\]"),
        (
            {"image": torch.ones(2, 3).int(), "text": torch.ones(2, 3).int()},
            TypeError,
            "image and text must be float32, .*, got torch.int32",
        ),
        ({"scale": torch.ones(2)}, ValueError, r"scale must be \[1\], got \[2\]"),
        ({"bias": torch.ones(0)}, ValueError, r"bias must be \[1\], got \[0\]"),
    ],
)
def test_bad_input(change, error, message):
    args = {"image": torch.ones(2, 3), "text": torch.ones(2, 3), "scale": torch.tensor(1.0)} | change
    with pytest.raises(error, match=message):
        ops.contrastive_loss(**args)


def test_texts_that_are_not_there():
    x, y, scale, bias = inputs(4, 3, -1.0)
    for first in (1, 2**62):
        with pytest.raises(ValueError, match=rf"the 4 texts of image from row {first} on, got \[4, 3\]"):
            softmax_parts(x, y, scale, first)
        with pytest.raises(ValueError, match="the 4 texts of image"):
            sigmoid_rows(x, y, scale, bias, first)
    with pytest.raises(ValueError, match="from row -1 on"):
        softmax_parts(x, y, scale, -1)
