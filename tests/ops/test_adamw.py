# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from vision_accel import ops
from vision_accel.testing import reference

OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
SHAPES = [(3, 5), (1,), (70_001,), (0, 4), (), (16_384,), (2, 4, 3, 3)]


def tensors(dtype=torch.float32, shapes=SHAPES):
    state = torch.float64 if dtype == torch.float64 else torch.float32
    params = [torch.randn(s, dtype=torch.float64).to(dtype) for s in shapes]
    grads = [torch.randn(s, dtype=torch.float64).to(dtype) for s in shapes]
    return params, grads, *([torch.zeros(s, dtype=state) for s in shapes] for _ in range(2))


def clone(lists, dtype=None):
    return [[t.to(dtype or t.dtype, copy=True) for t in one] for one in lists]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_matches_torch_optim(isa, dtype):
    params, grads, m, v = tensors(dtype)
    theirs = clone([params])[0]
    optimizer = torch.optim.AdamW(theirs, **OPTIONS)
    truth = clone([params], torch.float64)[0]
    exact = torch.optim.AdamW(truth, **OPTIONS)
    for step in range(1, 6):
        grads = [g + torch.randn_like(g) for g in grads]
        ops.adamw(params, grads, m, v, step=step, **OPTIONS)
        for tensor_list, opt in ((theirs, optimizer), (truth, exact)):
            for p, g in zip(tensor_list, grads, strict=True):
                p.grad = g.to(p)
            opt.step()
    for ours, p, t in zip(params, theirs, truth, strict=True):
        if t.numel():
            allowed = (
                2 * (p.double() - t).abs().max() + 1e-6 * t.abs().max() * (dtype == torch.float32) + 1e-14
            )
            assert (ours.double() - t).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_parameters_are_rounded_once(isa, dtype):
    params, grads, m, v = tensors(dtype)
    exact = clone([params, grads, m, v], torch.float64)
    ops.adamw(params, grads, m, v, step=3, **OPTIONS)
    reference.adamw(*exact, step=3, **OPTIONS)
    for p, q in zip(params, exact[0], strict=True):
        torch.testing.assert_close(p, q.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)
    for ours, theirs in zip(m + v, exact[2] + exact[3], strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-6, atol=1e-9)


def test_step_as_a_tensor():
    lists = tensors()
    others = clone(lists)
    ops.adamw(*lists, step=7, **OPTIONS)
    ops.adamw(*others, step=torch.tensor(7), **OPTIONS)
    for ours, theirs in zip(lists, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for wrong, message in ((torch.tensor(0), "at least 1"), (torch.tensor([1]), r"step must be \[\]")):
        with pytest.raises(ValueError, match=message):
            ops.adamw(*lists, step=wrong, **OPTIONS)
    with pytest.raises(TypeError, match="step must be int64"):
        ops.adamw(*lists, step=torch.tensor(1.0), **OPTIONS)


def test_mixed_dtypes_in_one_call():
    lists = [tensors(d, [(100,), (7, 3)]) for d in (torch.bfloat16, torch.float64, torch.float32)]
    joined = [[t for one in lists for t in one[i]] for i in range(4)]
    alone = [clone(one) for one in lists]
    ops.adamw(*joined, step=1, **OPTIONS)
    for one in alone:
        ops.adamw(*one, step=1, **OPTIONS)
    expected = [t for one in alone for t in one[0]]
    assert all(torch.equal(a, b) for a, b in zip(joined[0], expected, strict=True))


def test_grad_scale():
    a, b = tensors(), tensors()
    b = clone(a)
    b[1] = [g * 0.25 for g in b[1]]
    ops.adamw(*a, step=2, grad_scale=0.25, **OPTIONS)
    ops.adamw(*b, step=2, **OPTIONS)
    assert all(torch.equal(p, q) for i in (0, 2, 3) for p, q in zip(a[i], b[i], strict=True))


def test_same_bits_for_any_threads(isa):
    threads = torch.get_num_threads()
    start = tensors()
    results = []
    for n in (1, 2):
        torch.set_num_threads(n)
        lists = clone(start)
        for step in (1, 2):
            ops.adamw(*lists, step=step, **OPTIONS)
        results.append([*lists[0], ops.grad_norm(lists[1])])
    torch.set_num_threads(threads)
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def test_layouts():
    params, _, m, v = tensors(shapes=[(4, 3, 5, 5), (6, 8)])
    params[0], m[0], v[0] = (t[0].to(memory_format=torch.channels_last) for t in (params, m, v))
    grads = [torch.randn(4, 3, 5, 5), torch.randn(8, 6).t()]  # neither as its parameter
    exact = clone([params, grads, m, v])
    ops.adamw(params, grads, m, v, step=1, **OPTIONS)
    reference.adamw(*exact, step=1, **OPTIONS)
    for p, q in zip(params, exact[0], strict=True):
        torch.testing.assert_close(p, q)


def test_autograd_versions_rise():
    lists = tensors()
    params = [torch.nn.Parameter(p) for p in lists[0]]
    before = [t._version for t in (*params, *lists[2], *lists[3])]
    ops.adamw(params, *lists[1:], step=1, **OPTIONS)
    assert [t._version for t in (*params, *lists[2], *lists[3])] == [n + 1 for n in before]
    used = (params[0] * params[0]).sum()
    ops.adamw(params, *lists[1:], step=2, **OPTIONS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        used.backward()


def test_empty_list():
    ops.adamw([], [], [], [], step=1, **OPTIONS)
    assert torch.equal(ops.grad_norm([]), torch.tensor(0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_grad_norm(isa, dtype):
    grads = [torch.randn(s).to(dtype) for s in SHAPES]
    grads.append(torch.randn(6, 8).to(dtype)[:, ::2])
    expected = math.sqrt(sum(g.double().square().sum().item() for g in grads))
    norm = ops.grad_norm(grads)
    assert norm.shape == ()
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert norm.item() == pytest.approx(expected, rel=1e-12 if dtype == torch.float64 else 1e-7)


def test_grad_norm_of_extreme_values():
    assert ops.grad_norm([torch.full((100,), 1e30)]).item() == pytest.approx(1e31, rel=1e-6)
    assert ops.grad_norm([torch.ones(3), torch.tensor([math.inf])]).item() == math.inf
    assert ops.grad_norm([torch.ones(50_000), torch.tensor([math.nan])]).isnan()


def bad(which, index, tensor):
    lists = [list(one) for one in tensors(shapes=[(2, 3), (4,)])]
    lists[which][index] = tensor
    return lists


@pytest.mark.parametrize(
    ("lists", "options", "error", "message"),
    [
        (
            bad(1, 1, torch.ones(5)),
            {},
            ValueError,
            r"adamw: grads\[1\] must be laid out as \[4\] .*, got \[5\]",
        ),
        (bad(2, 0, torch.zeros(3, 2)), {}, ValueError, r"adamw: exp_avgs\[0\] must be laid out"),
        (bad(3, 0, torch.zeros(3, 2).t()), {}, ValueError, r"adamw: exp_avg_sqs\[0\] must be laid out"),
        (bad(1, 0, torch.ones(2, 3).double()), {}, TypeError, r"grads\[0\] must be float32, got float64"),
        (bad(2, 1, torch.zeros(4).half()), {}, TypeError, r"exp_avgs\[1\] must be float32, got float16"),
        (bad(0, 1, torch.zeros(4).int()), {}, TypeError, r"params\[1\] must be float32 or .*, got int32"),
        (bad(0, 1, torch.zeros(8)[::2]), {}, ValueError, r"params\[1\] must lie in memory without holes"),
        (bad(1, 1, None), {}, ValueError, r"adamw: grads\[1\] is required"),
        ([*tensors()[:3], []], {}, ValueError, "exp_avg_sqs must have 7 tensors, got 0"),
        (
            [tensors()[0], tensors()[1][:4], *tensors()[2:]],
            {},
            ValueError,
            "grads must have 7 tensors, got 4",
        ),
        (tensors(), {"step": 0}, ValueError, "step must be at least 1"),
        (tensors(), {"betas": (1.0, 0.9)}, ValueError, r"betas\[0\] must be in \[0, 1\)"),
        (tensors(), {"eps": -1.0}, ValueError, "eps must not be negative"),
    ],
)
def test_bad_input(lists, options, error, message):
    before = clone(lists[:1])[0]
    with pytest.raises(error, match=message):
        ops.adamw(*lists, **{"step": 1, **OPTIONS, **options})
    assert all(torch.equal(a, b) for a, b in zip(before, lists[0], strict=True))
