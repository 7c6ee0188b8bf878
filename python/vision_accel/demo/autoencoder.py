# SPDX-License-Identifier: Apache-2.0
"""An autoencoder trained on photographs, shown on parts of them that it never saw."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import vision_accel as va
from vision_accel import train
from vision_accel.demo.errors import DemoError
from vision_accel.demo.training import fit, run_options
from vision_accel.train.autoencode_options import AutoencodeOptions
from vision_accel.train.config import AugmentOptions, DataOptions, ModelOptions, OptimOptions

PSNR = 24.0  # dB; the demo fails below this on the held-out crops
SIZE = 64  # pixels of a crop
HELD_OUT = 5  # every fifth crop of a photograph is for testing


def photographs() -> Iterator[tuple[str, np.ndarray]]:
    """Names and pixels [h, w, 3] of the photographs that come with scikit-learn and scikit-image."""
    from skimage import data  # noqa: PLC0415  (only the demo needs them)
    from sklearn.datasets import load_sample_images  # noqa: PLC0415

    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        yield name, pixels
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        yield name, getattr(data, name)()


def write_crops(root: Path) -> tuple[int, int]:
    """Cut the photographs into ``root/{train,test}/<name>_<number>.png``; returns how many each part has."""
    counts = {"train": 0, "test": 0}
    for name, pixels in photographs():
        h, w = (n // SIZE for n in pixels.shape[:2])
        for number in range(h * w):
            part = "test" if number % HELD_OUT == HELD_OUT - 1 else "train"
            top, left = number // w * SIZE, number % w * SIZE
            (root / part).mkdir(parents=True, exist_ok=True)
            crop = Image.fromarray(pixels[top : top + SIZE, left : left + SIZE])
            crop.save(root / part / f"{name}_{number:03}.png")
            counts[part] += 1
    return counts["train"], counts["test"]


def options(out: Path, steps: int, seed: int) -> train.Config:
    """An autoencoder of f=4, trained on crops of 32 x 32 pixels (latents of 8 x 8 x 8)."""
    return train.Config(
        task="autoencode",
        data=DataOptions(
            train=str(out / "crops/train"), val=str(out / "crops/test"), batch_size=16, workers=1
        ),
        model=ModelOptions(
            name="autoencoder_kl_sd",
            img_size=32,
            overrides={
                "block_out_channels": "24,48,64",
                "layers_per_block": 1,
                "latent_channels": 8,
                "norm_num_groups": 8,
                "mid_block_add_attention": False,
                "sample_size": 32,
            },
        ),
        optim=OptimOptions(lr=2e-3, weight_decay=0.0),
        augment=AugmentOptions(scale=(0.25, 0.6), ratio=(1.0, 1.0)),
        train=run_options(out, steps, seed),
        autoencode=AutoencodeOptions(perceptual_weight=0.0),
    )


def run(
    out: Path,
    *,
    steps: int = 2400,
    seed: int = 0,
    resume: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> float:
    """Run the demo and leave everything it makes in ``out``; returns the mean PSNR on held-out crops in dB.

    Args:
        out: where to.
        steps: of training.
        seed: of everything.
        resume: go on with a run that was interrupted, instead of starting anew.
        say: gets a line of text now and then.

    Raises:
        DemoError: PSNR below 24 dB, or the run was stopped.
    """
    if not resume:
        for old in ("crops", "run"):
            shutil.rmtree(out / old, ignore_errors=True)
    counts = write_crops(out / "crops")
    say(f"crops of photographs: {counts[0]} for training, {counts[1]} held out, in {out / 'crops'}")
    result = fit(options(out, steps, seed), out, say, "; --resume goes on with it")
    directory = result.run_dir / "model"

    vae = va.load(directory)
    found = list(va.reconstruct(vae, out / "crops/test", batch_size=16))
    values = [r.psnr for r in found if r.psnr is not None]
    mean = float(np.mean(values))
    factor = vae.config.factor
    say(
        f"held-out crops: PSNR {mean:.2f} dB (worst {min(values):.2f}, best {max(values):.2f}) at"
        f" f={factor}, {vae.config.latent_channels} latent channels; saved as {directory}"
    )
    va.infer.draw_pairs(found[:: max(1, len(found) // 24)][:24], columns=8).save(out / "reconstructions.png")
    say(f"crops above their reconstructions: {out / 'reconstructions.png'}")
    if mean < PSNR:
        raise DemoError(f"PSNR {mean:.2f} dB on held-out crops is below {PSNR}")
    return mean
