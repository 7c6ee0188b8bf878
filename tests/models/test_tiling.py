# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vision_accel as va
from vision_accel.models import striped
from vision_accel.models.tiling import parse_memory, plan_for, striped_bytes, whole_bytes

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


def assert_same(got, want):
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("budget", [0, 10**5, 4 * 10**5, 10**9], ids=str)
@pytest.mark.parametrize("pixels", [1, 150, 700], ids=str)
def test_stripes_equal_the_whole(model, pixels, budget):
    plan = striped.Plan(pixels, budget)
    z, x = torch.randn(1, 13, 18, 4), torch.rand(1, 44, 60, 3)
    with torch.no_grad():
        assert_same(striped.decode(model.decoder, z, plan), model.decoder(z))
        assert_same(striped.encode(model.encoder, x, plan), model.encoder(x))


def test_within_a_budget(model):
    z, x = torch.randn(2, 4, 40, 24), torch.rand(2, 3, 160, 96)
    least = striped_bytes(WIDTHS, 160, 96, 4, 4)
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
    limit = striped_bytes(widths, side, side, 16, 4)
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
    assert small < 0.6 * peak


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
        assert model.decode(z, max_memory=striped_bytes(WIDTHS, 52, 72, 4, 4)).isnan().any()


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
