# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from vision_accel import _C, ops
from vision_accel.testing import reference

WIDTHS = [1, 15, 16, 17, 100]
CHANNELS = [1, 3, 5, 33, 130, 512]


def rows_of_all_sizes(width, channels, rows=3):
    """Every channel with a scale of its own, and some values that need a closer look."""
    x = torch.randn(rows, width, channels) * torch.randn(rows, 1, channels).mul(12).exp()
    special = torch.tensor([0.0, -0.0, 1.0, -3.0, 2.0**-107, 2.0**-108, 1e-40, 3.4e38, -3.4e38, 0.75, 1e-30])
    chosen = torch.rand_like(x) < 0.05
    x[chosen] = special[torch.randint(len(special), (int(chosen.sum()),))]
    return x


def pack(x, fill=0):
    """The rows of x one after another, with a gap before each."""
    size = ops.block_float_bytes(*x.shape[1:])
    store = torch.full((len(x) * (size + 64),), fill, dtype=torch.uint8)
    offsets = [64 + i * (size + 64) for i in range(len(x))]
    ops.pack_block_float(x, store, offsets)
    return store, offsets


def unpack(store, offsets, shape):
    out = torch.full(shape, -7.0)
    ops.unpack_block_float(store, offsets, out)
    return out


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_values_and_bytes(width, channels):
    x = rows_of_all_sizes(width, channels)
    x[0, width // 2, 0] = math.inf
    x[1, width - 1, channels - 1] = math.nan
    before, stores = _C.active_isa(), []
    try:
        for isa in _C.available_isas():
            _C.set_isa(isa)
            store, offsets = pack(x, fill=170)
            stores.append(store)
            y = unpack(store, offsets, x.shape)
            assert_same(y, reference.block_float(x))
            assert torch.equal(pack(y, fill=170)[0], store)
    finally:
        _C.set_isa(before)
    assert all(torch.equal(stores[0], s) for s in stores)
    written = torch.zeros(len(stores[0]), dtype=torch.bool)
    for at in offsets:
        written[at : at + 41 * -(-width // 16) * channels] = True
    assert (stores[0][~written] == 170).all()


def test_layout(isa):
    """The bytes that the header of the kernel describes."""
    x = torch.randn(1, 40, 3)
    x[0, :16, 1] = 1e-40
    store, (at,) = pack(x)
    row = store[at : at + ops.block_float_bytes(40, 3)]
    assert len(row) == 384
    words = row[:360].view(torch.int32).view(3, 10, 3).long() & 0xFFFFFFFF
    raw = row[360:369].view(3, 3).long()
    high = torch.cat([words[:, :8] & 0xFFFF, words[:, :8] >> 16], 1)
    low = torch.cat([words[:, 8 + i, None] >> (4 * torch.arange(8)[:, None]) & 15 for i in range(2)], 1)
    q = (high << 4 | low) - (high >> 15 << 20)
    y = torch.ldexp(q.double(), raw[:, None] - 145).view(48, 3)
    assert raw[0, 1] == 0
    assert_same(y[:40].float(), reference.block_float(x)[0])
    assert (y[40:] == 0).all()


def test_error_is_half_a_step(isa):
    x = torch.randn(4, 64, 48) * 10
    y = unpack(*pack(x), x.shape)
    step = 2.0 ** (torch.frexp(x.view(4, 4, 16, 48).abs().amax(2, keepdim=True)).exponent - 19)
    error = (x - y).view(4, 4, 16, 48).abs() / step
    assert error.max() <= 0.5
    assert error.max() > 0.49
    assert_same(unpack(*pack(x.bfloat16().float()), x.shape), reference.block_float(x.bfloat16().float()))


def test_short_mantissas_are_exact(isa):
    x = torch.randint(-(2**18), 2**18, (2, 48, 20)).float() * 2.0 ** torch.randint(-80, 80, (2, 1, 20))
    assert_same(unpack(*pack(x), x.shape), x + 0.0)


def test_rounding_and_clamp(isa):
    x = torch.zeros(1, 16, 2)
    x[0, :6, 0] = torch.tensor([2.0**18, 0.5, 1.5, 2.5, -0.5, -2.5])
    x[0, :3, 1] = torch.tensor([2.0**19 - 2.0**-5, -(2.0**19) + 2.0**-5, 0.25])
    y = unpack(*pack(x), x.shape)[0]
    assert y[:6, 0].tolist() == [2.0**18, 0, 2, 2, 0, -2]
    assert y[:3, 1].tolist() == [2.0**19 - 1, -(2.0**19) + 1, 0]


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_one_bad_value_spoils_its_block_and_channel_only(isa, bad):
    x = torch.randn(2, 40, 18)
    x[1, 20, 7] = bad
    y = unpack(*pack(x), x.shape)
    spoilt = torch.zeros(x.shape, dtype=torch.bool)
    spoilt[1, 16:32, 7] = True
    assert torch.equal(y.isnan(), spoilt)
    assert_same(y[~spoilt], reference.block_float(x.nan_to_num(0, 0, 0))[~spoilt])


def test_denormals_do_not_count(isa):
    x = torch.full((1, 16, 20), 2.0**-140)
    x[0, 3, ::2] = 2.0**-107
    flushed = []
    try:
        for flush in (False, True):
            torch.set_flush_denormal(flush)
            flushed.append(pack(x)[0])
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(*flushed)
    assert_same(unpack(*pack(x), x.shape), torch.where(x == 2.0**-107, x, 0.0))


def test_strides_and_order(isa):
    image = torch.randn(9, 50, 40)
    for x in (image[2:9:3, 5:38, 3:36], image.transpose(0, 1)[:20, :, :33], image.flip(0)[:, ::2]):
        size = ops.block_float_bytes(*x.shape[1:])
        store = torch.zeros(len(x) * size, dtype=torch.uint8)
        offsets = [(i * 7 % len(x)) * size for i in range(len(x))]
        ops.pack_block_float(x, store, offsets)
        expected, target = reference.block_float(x), torch.zeros(60, 60, 60)
        for out in (
            target[1 : 1 + x.shape[0], 2 : 2 + x.shape[1], 3 : 3 + x.shape[2]],
            target.transpose(0, 1)[: x.shape[0], : x.shape[1], : x.shape[2]],
        ):
            target.fill_(9)
            ops.unpack_block_float(store, offsets, out)
            assert_same(out, expected)
            assert (target == 9).sum() == target.numel() - out.numel()


def test_same_bytes_for_any_threads(isa):
    x = torch.randn(5, 333, 160)
    threads = torch.get_num_threads()
    results = []
    for n in (1, 2, 5):
        torch.set_num_threads(n)
        store, offsets = pack(x)
        results.append((store, unpack(store, offsets, x.shape)))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for r in results for a, b in zip(r, results[0], strict=True))


def test_more_rows_than_a_launch_takes(isa):
    x = torch.randn(600, 16, 3)
    assert_same(unpack(*pack(x), x.shape), reference.block_float(x))


def test_bytes():
    assert ops.block_float_bytes(1024, 128) == 1024 // 16 * 41 * 128
    assert ops.block_float_bytes(17, 3) == 256  # 2 blocks of 123
    assert ops.block_float_bytes(0, 3) == 0
    for width, channels, message in (
        (-1, 3, "width must not be negative, got -1"),
        (3, 0, "channels must be at least 1, got 0"),
        (2**60, 2**40, "too large"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.block_float_bytes(width, channels)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3)], ids=str)
def test_empty(shape):
    store = torch.zeros(0, dtype=torch.uint8)
    offsets = [0] * shape[0]
    ops.pack_block_float(torch.zeros(shape), store, offsets)
    ops.unpack_block_float(store, offsets, torch.zeros(shape))


def test_autograd_and_versions():
    x, store = torch.randn(2, 20, 3), torch.zeros(1024, dtype=torch.uint8)
    before = store._version
    ops.pack_block_float(x, store, (0, 256))
    assert store._version == before + 1
    before = x._version
    ops.unpack_block_float(store, (0, 256), x)
    assert x._version == before + 1
    x.requires_grad_()
    with pytest.raises(NotImplementedError, match="pack_block_float: its gradient is not supported"):
        ops.pack_block_float(x, store, (0, 256))
    with pytest.raises(NotImplementedError, match="unpack_block_float: its gradient is not supported"):
        ops.unpack_block_float(store, (0, 256), x)
    with torch.no_grad():
        ops.pack_block_float(x, store, (0, 256))
    with torch.inference_mode():
        out = torch.zeros(2, 20, 3)
        ops.unpack_block_float(store, (0, 256), out)
        ops.pack_block_float(out, store.clone(), (0, 256))
    assert_same(out, reference.block_float(x.detach()))


X, STORE = torch.zeros(2, 20, 3), torch.zeros(512, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("x", "store", "offsets", "error", "message"),
    [
        (X.double(), STORE, [0, 256], TypeError, "must be float32, got float64"),
        (X, STORE.float(), [0, 256], TypeError, "store must be uint8, got float32"),
        (X[0], STORE, [0], ValueError, r"must have 3 dimensions, got shape \[20, 3\]"),
        (X, STORE.view(2, 256), [0, 256], ValueError, "store must have 1 dimensions"),
        (X, torch.zeros(1024, dtype=torch.uint8)[::2], [0, 256], ValueError, "store must be contiguous"),
        (X, torch.zeros(520, dtype=torch.uint8)[8:], [0, 256], ValueError, "begin at a multiple of 16 bytes"),
        (X[..., :0], STORE, [0, 256], ValueError, "at least 1 channel, got 0"),
        (
            torch.zeros(2, 20, 6)[..., ::2],
            STORE,
            [0, 256],
            ValueError,
            "contiguous last axis, of stride 1, got 2",
        ),
        (X, STORE, [0], ValueError, "offsets must be 2, one for each row, got 1"),
        (X, STORE, [0, 256, 0], ValueError, "offsets must be 2, one for each row, got 3"),
        (X, STORE, [0, 257], ValueError, r"offsets\[1\] must be a multiple of 64, from 0 on, got 257"),
        (X, STORE, [-64, 256], ValueError, r"offsets\[0\] must be a multiple of 64, from 0 on, got -64"),
        (X, STORE, [0, 320], ValueError, r"takes 256 bytes and store has 512; offsets\[1\] .*, got 320"),
        (X, STORE, [0, 2**63 - 64], ValueError, r"offsets\[1\] must leave room"),
        (X, STORE[:128], [0, 0], ValueError, r"offsets\[0\] must leave room"),
        (X, STORE, [0, 2**64], TypeError, "offsets"),
        (X, STORE, [0, 0.5], TypeError, "integer"),
        (X, None, [0, 256], TypeError, "store must be a Tensor, got NoneType"),
        (X.numpy(), STORE, [0, 256], TypeError, "must be a Tensor, got ndarray"),
    ],
)
def test_bad_input(x, store, offsets, error, message):
    for call in (
        lambda: ops.pack_block_float(x, store, offsets),
        lambda: ops.unpack_block_float(store, offsets, x),
    ):
        with pytest.raises(error, match=message):
            call()


def test_overlaps_are_refused():
    with pytest.raises(ValueError, match="offsets must be at least 256 bytes apart, got 64"):
        ops.pack_block_float(X, STORE, [64, 0])
    base = torch.zeros(2 * 20 * 3)
    for size, stride in (((2, 20, 3), (0, 3, 1)), ((2, 20, 3), (60, 2, 1)), ((2, 20, 3), (57, 3, 1))):
        out = base.as_strided(size, stride)
        with pytest.raises(ValueError, match="unpack_block_float: out must not overlap itself"):
            ops.unpack_block_float(STORE, [0, 256], out)
    x = torch.randn(1, 20, 3).expand(2, 20, 3)  # may be read
    assert_same(unpack(*pack(x), x.shape), reference.block_float(x))
