# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from vision_accel import ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
REDUCTIONS = ["mean", "sum", "none"]


def indices(*shape, classes):
    return torch.randint(classes, shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(6, 1000), (1, 10), (33, 7), (5, 1), (2, 3, 17), (11,)], ids=str)
def test_class_indices(isa, shape, dtype):
    logits = torch.randn(shape).mul(3).to(dtype)
    target = indices(*shape[:-1], classes=shape[-1])
    if len(shape) == 1:  # torch's flatten(0, -2) needs two axes
        logits, target = logits[None], target[None]
    for smoothing in (0.0, 0.1):
        for reduction in REDUCTIONS:
            assert_accurate(
                ops.cross_entropy, reference.cross_entropy, (logits, target, smoothing, reduction)
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_probabilities(isa, smoothing, dtype):
    logits = torch.randn(9, 37).mul(3).to(dtype)
    target = torch.randn(9, 37).softmax(-1)
    target[0] *= 2  # torch does not ask for a sum of 1
    for reduction in REDUCTIONS:
        args = (logits, target.to(dtype), smoothing, reduction)
        assert_accurate(ops.cross_entropy, reference.cross_entropy, args)


@pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
def test_dtype_of_the_loss_is_torchs(target_dtype):
    for dtype in DTYPES:
        logits, target = torch.randn(3, 5).to(dtype), torch.rand(3, 5).to(target_dtype)
        ours, theirs = (f(logits, target) for f in (ops.cross_entropy, torch.nn.functional.cross_entropy))
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_ignored_rows(isa, smoothing):
    logits, target = torch.randn(20, 13), indices(20, classes=13)
    target[[0, 7, 19]] = -100
    for reduction in REDUCTIONS:
        assert_accurate(ops.cross_entropy, reference.cross_entropy, (logits, target, smoothing, reduction))
    target[target == -100] = 5
    assert_accurate(
        lambda x, t: ops.cross_entropy(x, t, smoothing, ignore_index=5),
        lambda x, t: reference.cross_entropy(x, t, smoothing, ignore_index=5),
        (logits, target),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(
    ("logits", "target"),
    [
        (torch.zeros(2, 5), torch.full((2,), -100)),
        (torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)),
        (torch.zeros(0, 5), torch.zeros(0, 5)),
    ],
    ids=["all ignored", "no rows", "no rows, probabilities"],
)
def test_nothing_to_count(logits, target, smoothing):
    for reduction, expected in (("mean", math.nan), ("sum", 0.0)):
        x = logits.clone().requires_grad_()
        loss = ops.cross_entropy(x, target, smoothing, reduction)
        torch.testing.assert_close(loss, torch.tensor(expected), equal_nan=True)
        loss.backward()
        assert torch.equal(x.grad, torch.zeros_like(x))
    assert torch.equal(ops.cross_entropy(logits, target, smoothing, "none"), torch.zeros(logits.shape[0]))


def test_infinite_and_huge_logits(isa):
    inf = math.inf
    logits = torch.tensor(
        [[0.0, -inf, 1.0], [1e30, 0.0, -1e30], [-inf, 3.0, -inf], [inf, 0.0, 0.0], [1e4, 1e4, 0]]
    )
    target = torch.tensor([0, 1, 1, 0, 1])
    for smoothing in (0.0, 0.1):
        ours, theirs = (
            f(logits, target, smoothing, "none") for f in (ops.cross_entropy, reference.cross_entropy)
        )
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_last_axis_holds_the_classes():
    logits, target = torch.randn(2, 3, 4, 10), indices(2, 3, 4, classes=10)
    ours = ops.cross_entropy(logits, target, reduction="none")
    theirs = torch.nn.functional.cross_entropy(logits.movedim(-1, 1), target, reduction="none")
    torch.testing.assert_close(ours, theirs)
    one = ops.cross_entropy(logits[0, 0, 0], target[0, 0, 0])
    torch.testing.assert_close(one, theirs[0, 0, 0])


def test_non_contiguous():
    base = torch.randn(12, 40)
    t = indices(12, classes=20)
    for x in (base[:, :20], base[:, ::2], base[:, 20:].flip(0), torch.randn(20, 12).t()):
        assert_accurate(ops.cross_entropy, reference.cross_entropy, (x, t))
    assert_accurate(ops.cross_entropy, reference.cross_entropy, (base[::2], indices(12, classes=40)[::2]))
    probabilities = torch.rand(40, 12).t()
    assert_accurate(ops.cross_entropy, reference.cross_entropy, (base, probabilities))


def test_same_bits_for_any_threads_and_batch(isa):
    logits, target = torch.randn(501, 100), indices(501, classes=100)
    threads = torch.get_num_threads()
    results = []
    for n in (1, 2):
        torch.set_num_threads(n)
        x = logits.clone().requires_grad_()
        loss = ops.cross_entropy(x, target, 0.1)
        loss.backward()
        results.append((loss.detach(), x.grad))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    rows = ops.cross_entropy(logits, target, reduction="none")
    assert torch.equal(rows[17:19], ops.cross_entropy(logits[17:19], target[17:19], reduction="none"))


def test_gradcheck():
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    probabilities = torch.rand(4, 6, dtype=torch.float64, requires_grad=True)
    for reduction in REDUCTIONS:

        def indexed(x, reduction=reduction):
            return ops.cross_entropy(x, torch.tensor([1, 0, -100, 5]), 0.1, reduction)

        assert torch.autograd.gradcheck(indexed, logits)
        assert torch.autograd.gradcheck(
            lambda x, t, reduction=reduction: ops.cross_entropy(x, t, 0.1, reduction), (logits, probabilities)
        )


def test_opcheck():
    op = torch.ops.vision_accel.cross_entropy.default
    logits = torch.randn(3, 5, requires_grad=True)
    for reduction in REDUCTIONS:
        torch.library.opcheck(op, (logits, torch.tensor([1, 2, 3]), 0.1, reduction, -100))
        torch.library.opcheck(op, (logits, torch.rand(3, 5, requires_grad=True), 0.1, reduction, -100))


def test_compiles_whole():
    compiled = torch.compile(
        lambda x, t: ops.cross_entropy(x * 2, t, 0.1), fullgraph=True, backend="aot_eager"
    )
    args = (torch.randn(4, 9), indices(4, classes=9))
    assert_accurate(compiled, lambda x, t: reference.cross_entropy(x * 2, t, 0.1), args)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": torch.tensor([1, 4])}, ValueError, r"must be in \[0, 4\) or -100, got 4 at row 1"),
        ({"target": torch.tensor([-1, 1])}, ValueError, r"must be in \[0, 4\) or -100, got -1 at row 0"),
        ({"target": torch.tensor([2**62, 1])}, ValueError, "got 4611686018427387904 at row 0"),
        ({"target": torch.tensor([1])}, ValueError, r"class indices must be \[2\], got \[1\]"),
        ({"target": torch.ones(2, 3)}, ValueError, r"probabilities must be \[2, 4\], got \[2, 3\]"),
        ({"target": torch.ones(2).int()}, TypeError, "target must be int64 or float32, got int32"),
        ({"logits": torch.ones(2, 4).int()}, TypeError, "logits must be float32 or .*, got int32"),
        ({"logits": torch.tensor(1.0)}, ValueError, "must be .*, got a scalar"),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got 1.5"),
        ({"label_smoothing": math.nan}, ValueError, "label_smoothing must be"),
        ({"reduction": "max"}, ValueError, "reduction must be none, mean or sum, got 'max'"),
    ],
)
def test_bad_input(change, error, message):
    args = {"logits": torch.ones(2, 4), "target": torch.tensor([1, 3])} | change
    with pytest.raises(error, match=message):
        ops.cross_entropy(**args)
