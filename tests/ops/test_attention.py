# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vision_accel import _C, ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def case(n, m=None, dim=64, batch=2, heads=2, dtype=torch.float32, spread=1.0):
    """q, k and v; the scores have a standard deviation of about `spread`."""
    m = n if m is None else m
    q = torch.randn(batch, n, heads, dim, dtype=torch.float64) * spread
    k, v = (torch.randn(batch, m, heads, dim, dtype=torch.float64) for _ in range(2))
    return tuple(t.to(dtype) for t in (q, k, v))


def padding(batch, keys):
    """Hides a different number of keys at the end of each item, and a few in between; never the first."""
    hidden = torch.rand(batch, keys) < 0.2
    hidden[:, 0] = False
    for i in range(batch):
        hidden[i, max(1, keys - 3 * i) :] = True
    return hidden


def check(args, *, grads=True, **options):
    assert_accurate(
        lambda *a: ops.attention(*a, **options),
        lambda *a: reference.attention(*a, **options),
        args,
        grads=grads,
    )


def gradients(fn, args, dy):
    leaves = [a.detach().requires_grad_() for a in args]
    y = fn(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("n", [1, 2, 7, 50, 77, 197, 257])
def test_token_counts(isa, n, causal):
    check(case(n, batch=1), causal=causal)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 8, 32, 40, 64, 80, 96, 128, 256])
def test_head_dims(isa, dim, dtype):
    check(case(23, dim=dim, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 40, 64, 80])
def test_few_queries(isa, dim, dtype):
    """One or two queries, as a class token asks, take a path of their own."""
    for n in (1, 2):
        q, k, v = case(n, 37, dim=dim, batch=3, dtype=dtype)
        check((q, k, v), causal=True, key_padding=padding(3, 37))
        check((q[:, :, :1], k.transpose(0, 1)[:3, :, :1], v.transpose(0, 1)[:3, :, :1]))
    check(case(1, 1100, dim=64, dtype=dtype), grads=False)  # several blocks of keys


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_at_vit_shape(isa, dtype):
    check(case(197, batch=1, dtype=dtype))


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(("n", "m"), [(1, 197), (3, 50), (7, 9), (50, 77), (100, 33), (5, 1)], ids=str)
def test_queries_and_keys_of_different_number(isa, n, m, causal):
    if causal and n > m:
        pytest.skip("the reference gives NaN: see test_query_without_keys_gives_zeros")
    check(case(n, m), causal=causal)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(("n", "m"), [(1, 40), (2, 2), (50, 50), (77, 77), (30, 170)], ids=str)
def test_key_padding(isa, n, m, causal):
    check(case(n, m, batch=3), causal=causal, key_padding=padding(3, m))


def test_key_padding_may_be_strided(isa):
    args, hidden = case(20), padding(2, 40)[:, ::2]
    assert not hidden.is_contiguous()
    check(args, key_padding=hidden)
    check(args, key_padding=hidden[:1].expand(2, 20))


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(
    ("n", "m", "dim"), [(130, 1500, 32), (650, 650, 64), (200, 200, 512), (90, 300, 256)], ids=str
)
def test_several_blocks_of_keys(n, m, dim, causal):
    hidden = padding(1, m)
    check(case(n, m, dim=dim, batch=1, heads=1), causal=causal, key_padding=hidden)


def test_blocks_of_keys_on_every_isa(isa):
    check(case(100, 700, batch=1, heads=1), causal=True)


def test_4096_tokens():
    check(case(4096, dim=40, batch=1, heads=1))


def test_one_head_of_512_like_the_autoencoder():
    check(case(1024, dim=512, batch=1, heads=1))


@pytest.mark.parametrize("scale", [0.3, 1.0, -0.5, 0.0])
def test_scale(isa, scale):
    check(case(40), scale=scale)


def test_large_scores_do_not_overflow(isa):
    q, k, v = case(60, spread=1e4)
    assert (q[0, :, 0] @ k[0, :, 0].T / 8).abs().max() > 1e4
    check((q, k, v))


def test_strided_views(isa):
    base = torch.randn(2, 30, 3, 4, 24)
    check(tuple(base.unbind(2)))  # packed tokens
    check(tuple(base.permute(2, 0, 3, 1, 4)[i].transpose(1, 2) for i in range(3)))  # [B, H, N, D] behind
    check(tuple(base[:, ::3, i] for i in range(3)))  # every third token
    check(tuple(base[..., ::2][:, :, i] for i in range(3)))  # last axis strided: copied
    check(tuple(base[:1, :, i].expand(2, -1, -1, -1) for i in range(3)))  # one item for both


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "heads", "dim"), [(197, 3, 64), (50, 2, 80), (9, 5, 7)], ids=str)
def test_packed(isa, n, heads, dim, dtype):
    qkv = torch.randn(2, n, 3 * heads * dim).to(dtype)
    assert_accurate(
        lambda x: ops.attention_qkv(x, heads), lambda x: reference.attention_qkv(x, heads), (qkv,)
    )


def test_packed_equals_separate(isa):
    qkv, hidden = torch.randn(2, 77, 3 * 4 * 32), padding(2, 77)
    dy = torch.randn(2, 77, 4 * 32)
    options = {"causal": True, "scale": 0.2, "key_padding": hidden}
    y, dqkv = gradients(lambda x: ops.attention_qkv(x, 4, **options), [qkv], dy)
    y2, *grads = gradients(
        lambda *a: ops.attention(*a, **options), qkv.unflatten(2, (3, 4, 32)).unbind(2), dy
    )
    assert torch.equal(y, y2)
    assert torch.equal(dqkv, torch.stack(grads, 2).flatten(2))
    strided = torch.empty(77, 2, 2 * 3 * 4 * 32).transpose(0, 1)[..., ::2].copy_(qkv)
    assert torch.equal(ops.attention_qkv(strided, 4, **options), y)


def test_query_without_keys_gives_zeros(isa):
    q, k, v = case(9, 5, batch=3, heads=2, dim=16)
    hidden = torch.zeros(3, 5, dtype=torch.bool)
    hidden[1] = True  # no key for item 1
    dy = torch.randn(3, 9, 32)
    y, *grads = gradients(lambda *a: ops.attention(*a, causal=True, key_padding=hidden), (q, k, v), dy)
    # Causal at the bottom right: the first four queries see no key either.
    assert not y[1].any()
    assert not y[:, :4].any()
    assert all(g.isfinite().all() for g in grads)
    assert not any(g[1].any() for g in grads)
    assert not grads[0][:, :4].any()
    # The rest is what the reference gives without those queries.
    truth = gradients(
        lambda *a: reference.attention(*a, causal=True), (q[::2, 4:], k[::2], v[::2]), dy[::2, 4:]
    )
    for ours, theirs in zip(
        [y[::2, 4:], grads[0][::2, 4:], grads[1][::2], grads[2][::2]], truth, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("batch", "n", "m", "heads"),
    [(0, 5, 5, 2), (2, 0, 5, 2), (2, 5, 0, 2), (2, 0, 0, 2), (2, 5, 5, 0)],
    ids=str,
)
def test_empty(isa, batch, n, m, heads):
    q, k, v = case(n, m, dim=8, batch=batch, heads=heads)
    y, *grads = gradients(ops.attention, (q, k, v), torch.ones(batch, n, heads * 8))
    assert y.shape == (batch, n, heads * 8)
    assert [g.shape for g in grads] == [q.shape, k.shape, v.shape]
    if m == 0 or n == 0:  # a query without keys gives zeros
        assert not any(t.any() for t in (y, *grads))
    assert ops.attention_qkv(torch.zeros(batch, n, 48), 2).shape == (batch, n, 16)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_item_is_the_same_alone_and_in_a_batch(isa, causal):
    args = case(197, batch=5, heads=3)
    dy = torch.randn(5, 197, 192)
    whole = gradients(lambda *a: ops.attention(*a, causal=causal), args, dy)
    alone = gradients(lambda *a: ops.attention(*a, causal=causal), [a[3:4] for a in args], dy[3:4])
    assert all(torch.equal(w[3:4], a) for w, a in zip(whole, alone, strict=True))


@pytest.mark.parametrize(
    ("n", "m", "dim"), [(197, 197, 64), (77, 900, 64), (1, 197, 64), (300, 300, 512)], ids=str
)
def test_result_is_the_same_for_any_number_of_threads(isa, n, m, dim):
    args, dy = case(n, m, dim=dim, heads=1), torch.randn(2, n, dim)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(gradients(ops.attention, args, dy))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("n", [1, 60])
def test_nan_stays_in_its_item_and_head(isa, n):
    clean = case(n, 60, batch=3)
    dy = torch.randn(3, n, 128)
    for which in range(3):
        args = [a.clone() for a in clean]
        args[which][1, -1, 0, 5] = float("nan")
        results = gradients(ops.attention, args, dy)
        expected = gradients(ops.attention, clean, dy)
        assert results[0][1, -1, 0:64].isnan().any()
        for got, want in zip(results, expected, strict=True):
            assert torch.equal(got[::2], want[::2])
            heads = (got[1].reshape(-1, 2, 64)[:, 1], want[1].reshape(-1, 2, 64)[:, 1])
            assert torch.equal(*heads)


def test_infinite_score_gives_nan_like_torch(isa):
    q, k, v = case(3, 20, dim=8)
    k[0, 4, 0] = float("inf")
    q[0, 1, 0] = 1.0
    assert ops.attention(q, k, v)[0, 1, :8].isnan().all()


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_gradcheck(isa, causal):
    q, k, v = (t.requires_grad_() for t in case(4, 6, dim=3, dtype=torch.float64))
    hidden = padding(2, 6)
    assert torch.autograd.gradcheck(
        lambda *a: ops.attention(*a, causal=causal, key_padding=hidden), (q, k, v)
    )
    qkv = torch.randn(1, 5, 3 * 2 * 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.attention_qkv(x, 2, causal=causal), (qkv,))


def test_gradient_of_a_strided_dy(isa):
    args, dy = case(20, dim=16), torch.randn(2, 32, 40)[..., ::2].transpose(1, 2)
    for a, b in zip(
        gradients(ops.attention, args, dy), gradients(ops.attention, args, dy.contiguous()), strict=True
    ):
        assert torch.equal(a, b)
    for got, want in zip(  # an expanded gradient has strides of zero
        gradients(ops.attention, args, torch.ones(()).expand(2, 20, 32)),
        gradients(reference.attention, args, torch.ones(2, 20, 32)),
        strict=True,
    ):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


def test_opcheck():
    q, k, v = (t.requires_grad_() for t in case(5, 7, dim=8))
    qkv = torch.randn(2, 5, 48, requires_grad=True)
    vision_accel = torch.ops.vision_accel
    for hidden, causal in ((None, False), (padding(2, 7), True)):
        torch.library.opcheck(vision_accel.attention.default, (q, k, v, hidden, causal, 0.5))
    for hidden, causal in ((None, False), (padding(2, 5), True)):
        torch.library.opcheck(vision_accel.attention_qkv.default, (qkv, 2, hidden, causal, 0.5))


def test_compiles_whole():
    q, k, v = case(9, dim=16)
    qkv = torch.randn(2, 9, 96)
    ours = torch.compile(lambda q, k, v, x: both(ops, q, k, v, x), fullgraph=True, backend="aot_eager")
    assert_accurate(ours, lambda q, k, v, x: both(reference, q, k, v, x), (q, k, v, qkv))


def both(module, q, k, v, qkv):
    return module.attention(q, k, v, causal=True).relu() + module.attention_qkv(qkv, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.ones(2, 3, 8)}, ValueError, r"attention: q must be \[B, N, H, D\], got \[2, 3, 8\]"),
        (
            {"k": torch.ones(2, 5, 8)},
            ValueError,
            r"attention: k must have 4 dimensions, got shape \[2, 5, 8\]",
        ),
        (
            {"k": torch.ones(2, 5, 3, 8)},
            ValueError,
            r"attention: k must be \[2, 5, 2, 8\], got \[2, 5, 3, 8\]",
        ),
        (
            {"k": torch.ones(1, 5, 2, 8)},
            ValueError,
            r"attention: k must be \[2, 5, 2, 8\], got \[1, 5, 2, 8\]",
        ),
        (
            {"v": torch.ones(2, 4, 2, 8)},
            ValueError,
            r"attention: v must be \[2, 5, 2, 8\], got \[2, 4, 2, 8\]",
        ),
        ({"v": torch.ones(2, 5, 2, 8).double()}, TypeError, "attention: v must be float32, got float64"),
        ({"q": torch.ones(2, 3, 2, 8).int()}, TypeError, "attention: q must be float32 or .*, got int32"),
        (
            {"key_padding": torch.zeros(2, 3).bool()},
            ValueError,
            r"key_padding must be \[2, 5\], got \[2, 3\]",
        ),
        ({"key_padding": torch.zeros(2, 5)}, TypeError, "attention: key_padding must be bool, got float32"),
        (
            {name: torch.ones(2, 5, 2, 520) for name in "qkv"},
            ValueError,
            "attention: head dim must be at most 512, got 520",
        ),
    ],
)
def test_bad_input(change, error, message):
    args = {"q": torch.ones(2, 3, 2, 8), "k": torch.ones(2, 5, 2, 8), "v": torch.ones(2, 5, 2, 8)} | change
    with pytest.raises(error, match=message):
        ops.attention(**args)


@pytest.mark.parametrize(
    ("shape", "heads"), [((2, 5, 25), 2), ((2, 5), 1), ((2, 5, 24), 0), ((2, 5, 24), -1)]
)
def test_bad_packed_input(shape, heads):
    with pytest.raises(ValueError, match=r"attention_qkv: qkv must be \[B, N, 3 \* .* got \[2, 5"):
        ops.attention_qkv(torch.ones(shape), heads)


def test_core_rejects_what_the_wrapper_would_have_fixed():
    q = torch.ones(1, 2, 1, 16)
    y, lse, rest = torch.empty_like(q), torch.empty(1, 1, 2), (None, False, 1.0, False, 0)
    with pytest.raises(ValueError, match="attention: q must have a contiguous last axis"):
        _C.attention_forward(q[..., ::2], q[..., ::2], q[..., ::2], None, y[..., :8], lse, *rest)
    with pytest.raises(ValueError, match=r"attention: lse must be \[1, 1, 2\]"):
        _C.attention_forward(q, q, q, None, y, lse[..., :1], *rest)
    with pytest.raises(TypeError, match="attention: lse must be float32"):
        _C.attention_forward(q, q, q, None, y, lse.double(), *rest)
