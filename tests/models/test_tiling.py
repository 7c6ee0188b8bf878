# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vision_accel as va
from vision_accel.models import striped
from vision_accel.models.rows import Ring, Sliding, Stored
from vision_accel.models.tiling import least_bytes, parse_memory, plan_for, whole_bytes

WIDTHS = (32, 64, 64)
ROOT = Path(__file__).parents[2]


def new_model():
    torch.manual_seed(0)
    return va.create_model(
        "autoencoder_kl_sd", block_out_channels=WIDTHS, layers_per_block=1, norm_num_groups=16
    ).eval()


@pytest.fixture(scope="module")
def model():
    return new_model()


def assert_same(got, want, dtype=torch.float32):
    assert got.shape == want.shape
    tolerance = 1e-5 if dtype == torch.float32 else 1e-14
    assert (got - want).abs().max() <= tolerance * (want.max() - want.min())


@pytest.mark.parametrize("working", [0, 10**5, 4 * 10**5], ids=str)
@pytest.mark.parametrize("stored", [2.6, 4, 9, 40], ids=str)
def test_stripes_equal_the_whole(model, working, stored):
    """With stripes of two rows and more, and where room is for one packed stream up to all that there is."""
    plan = striped.Plan(working, int(stored * 52 * 72 * WIDTHS[0]) + 10**5)
    z, x = torch.randn(1, 13, 18, 4), torch.rand(1, 52, 72, 3)
    with torch.no_grad():
        assert_same(striped.decode(model.decoder, z, plan), model.decoder(z))
        assert_same(striped.encode(model.encoder, x, plan), model.encoder(x))


SHAPES = [  # widths, groups, layers, latent
    ((8, 8), 1, 2, (40, 3)),
    ((24, 8, 16), 8, 1, (11, 16)),
    ((4, 12, 4, 8), 4, 1, (9, 7)),
    ((6, 10), 2, 1, (24, 9)),
]


@pytest.mark.parametrize(("widths", "groups", "layers", "latent"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_widths_within_the_least_and_more(widths, groups, layers, latent, dtype):
    torch.manual_seed(0)
    config = {"block_out_channels": widths, "layers_per_block": layers, "norm_num_groups": groups}
    model = va.create_model("autoencoder_kl_sd", **config).eval().to(dtype)
    size = [n << len(widths) - 1 for n in latent]
    z, x = torch.randn(1, 4, *latent, dtype=dtype), torch.rand(1, 3, *size, dtype=dtype)
    least = least_bytes(widths, *size, dtype.itemsize)
    cut = [b for k in (1.0, 1.2, 1.5, 2.0) if plan_for(widths, *size, dtype.itemsize, b := int(least * k))]
    assert cut
    for budget in cut:
        with torch.no_grad():
            assert_same(model.decode(z, max_memory=budget), model.decode(z), dtype)
            assert_same(model.encode(x, max_memory=budget).mean, model.encode(x).mean, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
def test_stripes_in_16_bits(dtype, autocast):
    model = new_model() if autocast else new_model().to(dtype)
    z = torch.randn(1, 4, 40, 24, dtype=model.dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=autocast):
        want, got = model.decode(z), model.decode(z, max_memory=least_bytes(WIDTHS, 160, 96, 4))
        exact = new_model().decode(z.float()) if dtype == torch.bfloat16 else want
    assert got.dtype == want.dtype
    error, other = (got - exact).abs().max(), (want - exact).abs().max()
    assert error <= 2 * other + 4 * torch.finfo(dtype).eps * want.abs().max()


def test_rows_come_back_from_the_ring():
    ring = Ring(2000, torch.device("cpu"))
    images = [torch.randn(1, 40, 5, 3), torch.randn(1, 40, 2, 7, dtype=torch.float64)]
    stored = [Stored(ring, x[:0], packed=False) for x in images]
    for i in range(0, 40, 4):  # what is read makes room for what comes
        for x, s in zip(images, stored, strict=True):
            s.append(x[:, i : i + 4])
            window = torch.empty_like(x[:, :4])
            s.read(i, i + 4, window, "move")
            s.read(i, i + 4, window, "free")
            assert torch.equal(window, x[:, i : i + 4])
    with pytest.raises(RuntimeError, match="bytes for rows are too few"):
        stored[0].append(images[0])


def test_a_window_makes_a_row_once():
    x, made = torch.arange(23.0).view(1, 23, 1, 1), []

    def make(first, last, out):
        made.append((first, last))
        out.copy_(x[:, first:last])

    window = Sliding(x[:0], 5, make, step=2)
    for first in range(0, 23, 5):
        low, high = max(0, first - 1), min(23, first + 6)
        assert torch.equal(window.rows(low, high), x[:, low:high])
        assert torch.equal(window.rows(first, high), x[:, first:high])
    assert made == [(0, 6), (6, 12), (12, 16), (16, 22), (22, 23)]


def test_within_a_budget(model):
    z, x = torch.randn(2, 4, 40, 24), torch.rand(2, 3, 160, 96)
    least = least_bytes(WIDTHS, 160, 96, 4)
    assert least < whole_bytes(WIDTHS, 160 * 96, 4)
    with torch.no_grad():
        assert_same(model.decode(z, max_memory=least), model.decode(z))
        assert_same(model.encode(x, max_memory=least).mean, model.encode(x).mean)
        assert torch.equal(model.decode(z, max_memory="2GB"), model.decode(z))
        assert model.decode(z[:0], max_memory=least).shape == (0, *model.decode(z).shape[1:])
        assert model.encode(x[:0], max_memory=least).mean.shape == (0, *z.shape[1:])
        model.enable_tiling(max_memory=least)
        assert_same(model.decode(z), model.disable_tiling() or model.decode(z))
    with pytest.raises(ValueError, match="the least that works is"):
        model.decode(z, max_memory=least - 1)


def test_the_least_that_works_works():
    with pytest.raises(ValueError, match="the least that works is") as e:
        plan_for(WIDTHS, 512, 512, 4, 1000)
    least = str(e.value).rpartition(" ")[2]
    assert plan_for(WIDTHS, 512, 512, 4, parse_memory(least)) is not None


# In a process of its own, where every large tensor has its own mapping: a heap has holes, of any size.
PEAKS = """
import sys, torch
from bench.common import peak_memory
from tests.models.test_tiling import new_model
torch.set_num_threads(1)
model, z = new_model(), torch.randn(1, 4, 128, 128)
with torch.inference_mode():
    model.decode(z[:, :, :8, :8])  # packs the weights
    print(peak_memory(lambda: model.decode(z)))
    print(peak_memory(lambda: model.decode(z, max_memory=int(sys.argv[1]))))
"""


def test_peak_is_what_the_model_of_memory_says():
    widths, side = WIDTHS, 512
    whole = whole_bytes(widths, side * side, 4)
    limit = whole // 6
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    run = [sys.executable, "-c", PEAKS, str(limit)]
    out = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT, env=env).stdout
    if "None" in out:
        pytest.skip("peak memory is not known here")
    peak, small = map(int, out.split())
    result = 3 * side * side * 4
    slack = 24 * 2**20  # of the allocator, and packing buffers
    assert 0.5 * whole < peak < whole + 2 * result + slack
    assert small < limit + 2 * result + slack
    assert small < peak / 4


def test_blended_tiles(model):
    z = torch.randn(1, 4, 20, 26)
    with torch.no_grad():
        want = model.decode(z)
        model.enable_tiling(48, 0.5)
        try:
            got, latents = model.decode(z), model.encode(want).mean
        finally:
            model.disable_tiling()
        assert got.shape == want.shape
        assert latents.shape == z.shape
        assert 0 < (got - want).abs().mean() < 0.5 * want.abs().mean()  # alike, but not the same
        model.enable_tiling(128)
        assert torch.equal(model.decode(z), want)  # smaller than one tile
        model.disable_tiling()


def test_nan_latents(model):
    z = torch.randn(1, 4, 13, 18)
    z[0, 0, 3, 3] = float("nan")
    with torch.no_grad():
        assert model.decode(z, max_memory=least_bytes(WIDTHS, 52, 72, 4)).isnan().any()


@pytest.mark.parametrize(
    ("value", "want"), [("2GB", 2**31), ("1.5 GiB", 3 * 2**29), ("512M", 2**29), (1000, 1000), ("7kb", 7168)]
)
def test_amounts_of_memory(value, want):
    assert parse_memory(value) == want


@pytest.mark.parametrize("value", ["", "much", "-1", 0, "2XB"])
def test_no_amount_of_memory(value):
    with pytest.raises(ValueError, match="must be an amount of memory such as '2GB'"):
        parse_memory(value)


def test_bad_tiles(model):
    with pytest.raises(ValueError, match="tiles must be multiples of 4 pixels"):
        model.enable_tiling(30)
    with pytest.raises(ValueError, match="overlap by less than 1"):
        model.enable_tiling(32, 1.0)
