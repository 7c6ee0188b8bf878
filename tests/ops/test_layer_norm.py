# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vision_accel import ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def case(shape, dtype=torch.float32, affine=True):
    x = torch.randn(shape, dtype=torch.float64).mul(2).add(0.5).to(dtype)
    w = torch.randn(shape[-1]).to(dtype) if affine else None
    b = torch.randn(shape[-1]).to(dtype) if affine else None
    return x, w, b, 1e-6


def with_residual(fn):
    return lambda x, r, w, b, eps: fn(x, w, b, eps, residual=r)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(3, 768), (2, 5, 33), (2, 1), (7, 16), (4, 1000), (65, 3), (130, 2)], ids=str
)
def test_matches_reference(isa, shape, dtype):
    assert_accurate(ops.layer_norm, reference.layer_norm, case(shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_residual(isa, dtype):
    x, w, b, eps = case((4, 9, 100), dtype)
    args = (x, torch.randn(x.shape).to(dtype), w, b, eps)
    assert_accurate(with_residual(ops.layer_norm), with_residual(reference.layer_norm), args)


def test_without_affine(isa):
    assert_accurate(ops.layer_norm, reference.layer_norm, case((5, 40), affine=False))


def test_large_mean_does_not_cancel(isa):
    x, w, b, eps = case((8, 256))
    assert_accurate(ops.layer_norm, reference.layer_norm, (x + 1e4, w, b, eps), grads=False)


@pytest.mark.parametrize("dim", [31, 768])
def test_a_row_of_equal_values_has_no_variance(isa, dim):
    rows = torch.tensor([0.1, 3.3, 1234.567])[:, None].expand(-1, dim)
    assert not ops.layer_norm(rows, None, None, 1e-12).any()


def test_non_contiguous(isa):
    base = torch.randn(6, 10, 64)
    for x in (base[:, ::2], base.transpose(0, 1), base[..., ::2], base[:, 0]):
        assert_accurate(ops.layer_norm, reference.layer_norm, (x, None, None, 1e-5))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (2, 0, 4)], ids=str)
def test_empty(shape):
    x = torch.zeros(shape, requires_grad=True)
    w = torch.ones(shape[-1], requires_grad=True)
    y = ops.layer_norm(x, w, None)
    y.sum().backward()
    assert y.shape == x.shape
    assert torch.equal(w.grad, torch.zeros_like(w))


def test_many_rows():
    assert_accurate(ops.layer_norm, reference.layer_norm, case((100_003, 8)))


def test_rows_are_independent_of_the_batch_and_of_threads(isa):
    x, w, b, eps = case((501, 192))
    whole = ops.layer_norm(x, w, b, eps)
    assert torch.equal(whole[17:18], ops.layer_norm(x[17:18], w, b, eps))
    dy = torch.randn_like(x)
    grads = []
    threads = torch.get_num_threads()
    for n in (1, 2):
        torch.set_num_threads(n)
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        ops.layer_norm(*leaves, eps).backward(dy)
        grads.append([t.grad for t in leaves])
    torch.set_num_threads(threads)
    assert all(torch.equal(p, q) for p, q in zip(*grads, strict=True))


def test_nan_stays_in_its_row(isa):
    x, w, b, eps = case((4, 50))
    x[2, 7] = float("nan")
    y = ops.layer_norm(x, w, b, eps)
    assert y[2].isnan().all()
    assert not y[[0, 1, 3]].isnan().any()


def test_gradcheck():
    x, w, b = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 5), (5,), (5,)))
    r = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: ops.layer_norm(*a, 1e-5), (x, w, b))
    assert torch.autograd.gradcheck(lambda x, r, w, b: ops.layer_norm(x, w, b, residual=r), (x, r, w, b))


def test_opcheck():
    x, w, b, eps = case((3, 5, 16))
    w.requires_grad_()
    for residual in (None, torch.randn_like(x).requires_grad_()):
        torch.library.opcheck(
            torch.ops.vision_accel.layer_norm.default, (x.requires_grad_(), residual, w, b, eps)
        )


def test_compiles_whole():
    x, w, b, eps = case((4, 32))
    compiled = torch.compile(lambda *a: ops.layer_norm(*a).relu(), fullgraph=True, backend="aot_eager")
    assert_accurate(compiled, lambda *a: reference.layer_norm(*a).relu(), (x, w, b, eps))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.ones(5)}, ValueError, r"layer_norm: weight must be \[4\], got \[5\]"),
        ({"bias": torch.ones(4, 1)}, ValueError, r"layer_norm: bias must be \[4\], got \[4, 1\]"),
        ({"weight": torch.ones(4).double()}, TypeError, "layer_norm: weight must be float32, got float64"),
        ({"x": torch.ones(3, 4).int()}, TypeError, "layer_norm: x must be float32 or .*, got int32"),
        ({"x": torch.tensor(1.0)}, ValueError, "at least 1 dimension"),
        ({"residual": torch.ones(2, 4)}, ValueError, r"residual must be \[3, 4\], got \[2, 4\]"),
    ],
)
def test_bad_input(change, error, message):
    args = {"x": torch.ones(3, 4), "weight": None, "bias": None} | change
    with pytest.raises(error, match=message):
        ops.layer_norm(**args)
