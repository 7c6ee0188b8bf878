# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import vision_accel as va
from vision_accel import infer
from vision_accel.cli import main
from vision_accel.data import images as data_images
from vision_accel.infer.reconstruct import encode


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    changes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    return va.create_model("autoencoder_kl_sd", **changes).eval()


def test_pictures_of_any_size(vae, image_root):
    found = list(va.reconstruct(vae, image_root / "val", batch_size=4))
    assert len(found) == 18
    for r in found:
        with Image.open(r.source) as picture:
            assert r.image.size == r.output.size == picture.size
        a, b = (np.asarray(i, dtype=np.float64) for i in (r.image, r.output))
        assert r.psnr == pytest.approx(10 * np.log10(255**2 / ((a - b) ** 2).mean()))


def test_batches_do_not_change_results(vae):
    pictures = [np.random.default_rng(i).integers(0, 256, (9, 12, 3)).astype(np.uint8) for i in range(3)]
    one, three = (list(va.reconstruct(vae, pictures, batch_size=n)) for n in (1, 3))
    for a, b in zip(one, three, strict=True):
        assert np.array_equal(np.asarray(a.output), np.asarray(b.output))


def test_bad_pictures(vae, tmp_path):
    good, bad = tmp_path / "a.png", tmp_path / "b.png"
    Image.new("RGB", (8, 8)).save(good)
    bad.write_bytes(b"no picture")
    found = list(va.reconstruct(vae, tmp_path, on_error="skip"))
    assert found[0].psnr is not None
    assert "b.png" in found[1].error
    with pytest.raises(data_images.ImageError, match=r"b\.png"):
        list(va.reconstruct(vae, tmp_path))
    with pytest.raises(ValueError, match="batch_size: must be at least 1"):
        list(va.reconstruct(vae, good, batch_size=0))


def test_latents_in_files(vae, tmp_path):
    file = tmp_path / "picture.png"
    Image.fromarray(np.arange(7 * 10 * 3, dtype=np.uint8).reshape(7, 10, 3)).save(file)
    assert infer.save_latents(vae, file, tmp_path / "latents.safetensors") == 1
    latents = infer.load_latents(tmp_path / "latents.safetensors")[str(file)]
    assert latents.shape == (4, 4, 5)
    way = infer.interpolate(vae, latents, torch.randn(4, 4, 5), 3)
    assert [p.size for p in way] == [(10, 8)] * 3
    whole = next(iter(va.reconstruct(vae, file))).output
    assert np.array_equal(np.asarray(way[0])[:7], np.asarray(whole))
    assert len(infer.interpolate(vae, latents, latents, 2)) == 2
    with pytest.raises(ValueError, match="needs latents of one shape"):
        infer.interpolate(vae, latents, latents[:, 1:])


def test_picture_of_pairs(vae):
    found = list(va.reconstruct(vae, [np.zeros((8, 8, 3), np.uint8)] * 3))
    assert infer.draw_pairs(found, columns=2).size == (2 * 12, 2 * (16 + 18))
    with pytest.raises(ValueError, match="no reconstructions"):
        infer.draw_pairs([])


def test_command(vae, image_root, tmp_path, capsys):
    va.save(vae, tmp_path / "vae")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    folder = str(image_root / "val" / "red")
    out = [
        f"--output={tmp_path / 'out'}",
        f"--grid={tmp_path / 'grid.png'}",
        f"--latents={tmp_path / 'z.safetensors'}",
    ]
    assert main(["reconstruct", str(tmp_path / "vae"), folder, str(bad), "--max-memory=1GB", *out]) == 3
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith("mean PSNR ")
    assert len(printed.out.splitlines()) == 7
    assert "bad.png" in printed.err
    assert len(list((tmp_path / "out").iterdir())) == 6
    assert len(infer.load_latents(tmp_path / "z.safetensors")) == 6
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 0
    assert main(["reconstruct", str(tmp_path / "vae"), folder, "--max-memory=much"]) == 2
    assert "max_memory: must be an amount of memory" in capsys.readouterr().err


def test_what_is_no_picture(vae):
    with pytest.raises(ValueError, match="NaN or infinity"):
        infer.decode(vae, torch.full((1, vae.config.latent_channels, 2, 2), torch.nan))
    options = {"block_out_channels": (32,), "in_channels": 4, "out_channels": 2}
    other = va.create_model("autoencoder_kl_sd", **options).eval()
    white = np.full((4, 4, 3), 255, np.uint8)
    with pytest.raises(ValueError, match="pictures have 1 or 3 channels, but the autoencoder makes 2"):
        infer.decode(other, torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="pictures have 1 or 3 channels, but the autoencoder takes 4"):
        list(encode(other, white))
    with pytest.raises(ValueError, match="reconstruct: the autoencoder takes 4 channels and makes 2"):
        list(va.reconstruct(other, white))


def test_grey_pictures(image_root, tmp_path):
    """A model of one channel sees colours as Pillow makes them grey."""
    options = {"block_out_channels": (8, 16), "norm_num_groups": 4, "in_channels": 1, "out_channels": 1}
    model = va.create_model("autoencoder_kl_sd", **options).eval()
    va.save(model, tmp_path / "vae")
    folder = str(image_root / "val")
    for r in va.reconstruct(model, folder, batch_size=4):
        assert r.image.mode == r.output.mode == "L"
        with Image.open(r.source) as picture:
            assert np.array_equal(np.asarray(r.image), np.asarray(picture.convert("RGB").convert("L")))
        a, b = (np.asarray(i, dtype=np.float64) for i in (r.image, r.output))
        assert r.psnr == pytest.approx(10 * np.log10(255**2 / ((a - b) ** 2).mean()))
    latents, grid = str(tmp_path / "latents.safetensors"), str(tmp_path / "grid.png")
    assert main(["reconstruct", str(tmp_path / "vae"), folder, "--grid", grid, "--latents", latents]) == 0
    assert main(["decode", str(tmp_path / "vae"), latents, "--grid", grid]) == 0
    with Image.open(grid) as picture:
        assert picture.mode == "RGB"


def test_samples(vae):
    few, many = list(infer.sample(vae, 1, (8, 12))), list(infer.sample(vae, 2, (8, 12)))
    assert [p.size for p in many] == [(12, 8)] * 2
    assert np.array_equal(np.asarray(few[0]), np.asarray(many[0]))
    assert not np.array_equal(np.asarray(many[0]), np.asarray(many[1]))
    with pytest.raises(ValueError, match="sides that 2 divides, got 1 of 8x7"):
        list(infer.sample(vae, 1, (8, 7)))


def test_command_decode(vae, image_root, tmp_path, capsys):
    model, file, out = str(tmp_path / "vae"), tmp_path / "z.safetensors", tmp_path / "out"
    va.save(vae, model)
    infer.save_latents(vae, image_root / "val" / "red", file)
    latents = infer.load_latents(file)
    names = sorted(latents, key=lambda name: (latents[name].shape, name))
    assert main(["decode", model, str(file), f"--output={out}", "--max-memory=1GB"]) == 0
    assert len(list(out.iterdir())) == len(names) == 6
    whole = next(iter(va.reconstruct(vae, names[0]))).output
    with Image.open(next(out.glob(f"*_{Path(names[0]).stem}.png"))) as picture:
        assert np.array_equal(np.asarray(picture)[: whole.height, : whole.width], np.asarray(whole))
    grid = tmp_path / "grid.png"
    way = ["--interpolate", names[0], names[0], "--steps=3", f"--grid={grid}"]
    assert main(["decode", model, str(file), *way]) == 0
    assert main(["decode", model, "--samples=3", "--size", "8", "16", f"--grid={grid}"]) == 0
    with Image.open(grid) as picture:
        assert picture.size == (3 * 20, 12)
    nan, broken = tmp_path / "nan.safetensors", tmp_path / "broken.safetensors"
    save_file({"x": torch.full((4, 2, 2), torch.nan)}, nan)
    broken.write_bytes(file.read_bytes()[:100])
    for flags, message in (
        ([str(file)], "name --output or --grid"),
        (["--interpolate", "a", "b", f"--grid={grid}"], "needs a file of latents"),
        ([str(file), "--size", "8", "8", f"--grid={grid}"], "--size: is for random latents"),
        ([str(nan), f"--grid={grid}"], "the latent 'x' is not finite"),
        ([str(broken), f"--grid={grid}"], "is not a whole safetensors file"),
        ([str(file), "--interpolate", "a", "b", f"--grid={grid}"], "has no latent 'a'"),
    ):
        assert main(["decode", model, *flags]) == 2
        assert message in capsys.readouterr().err
