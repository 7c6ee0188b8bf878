# SPDX-License-Identifier: Apache-2.0
"""The whole product in one run: pictures -> training -> evaluation -> saved model -> labels -> speed."""

import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import vision_accel as va
from vision_accel import infer, train
from vision_accel.demo import digits, speed
from vision_accel.demo.errors import DemoError
from vision_accel.demo.training import fit
from vision_accel.train.config import (
    AugmentOptions,
    DataOptions,
    ModelOptions,
    OptimOptions,
    TrainOptions,
)

ACCURACY = 0.98  # the demo fails below this share of held-out digits
SHOWN = 60  # images in predictions.png


def options(out: Path, epochs: float, seed: int) -> train.Config:
    """A ViT of 1.2 million weights on 32x32 images, 17 tokens each."""
    return train.Config(
        data=DataOptions(
            train=str(out / "digits/train"), val=str(out / "digits/test"), batch_size=64, workers=1
        ),
        model=ModelOptions(
            name="vit_tiny_patch16_224",
            img_size=digits.SIZE,
            overrides={"patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4},
        ),
        optim=OptimOptions(lr=1e-3),
        augment=AugmentOptions(scale=(0.7, 1.0), ratio=(0.9, 1.1), flip=0.0),  # a mirrored digit is no digit
        # "last": the held-out images must not choose the weights that they then judge.
        train=TrainOptions(out=str(out / "run"), epochs=epochs, seed=seed, device="cpu", export="last"),
    )


def run(
    out: Path,
    *,
    epochs: float = 50,
    seed: int = 0,
    timing: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> float:
    """Run the demo and leave everything it makes in ``out``; returns the accuracy on held-out images.

    Raises:
        DemoError: accuracy below 0.98, or the saved model gives other logits when it is loaded again.
    """
    for old in ("digits", "run"):
        shutil.rmtree(out / old, ignore_errors=True)
    counts = digits.write_digits(out / "digits")
    say(f"digits: {counts[0]} training and {counts[1]} test images in {out / 'digits'}")

    result = fit(options(out, epochs, seed), out, say)
    model_dir = result.run_dir / "model"

    model = va.load(model_dir)
    score = train.evaluate(model, out / "digits/test")
    say(f"held-out accuracy: {score.top1:.4f} ({score.images} images), saved as {model_dir}")

    _label(model, out, say)
    _check_transformers(model, model_dir, say)
    if timing:
        say(f"\n{speed.NAME}, fp32, {torch.get_num_threads()} threads, calls in turn:\n")
        say(speed.table(speed.compare()))
    if score.top1 < ACCURACY:
        raise DemoError(f"held-out accuracy {score.top1:.4f} is below {ACCURACY}")
    return score.top1


def _label(model: torch.nn.Module, out: Path, say: Callable[[str], None]) -> None:
    """Classify the held-out files and draw some of them, mistakes first."""
    results = list(infer.iter_classify(model, out / "digits/test", 3, batch_size=64, thumbnail=96))
    truth = [Path(r.source).parent.name for r in results]
    order = sorted(range(len(results)), key=lambda i: (results[i].label == truth[i], i * 7 % len(results)))
    shown = order[:SHOWN]
    wrong = sum(r.label != t for r, t in zip(results, truth, strict=True))
    title = (
        f"{len(results)} held-out digits, {wrong} mistake{'s' * (wrong != 1)} (framed); {len(shown)} shown"
    )
    page = infer.draw_grid(
        [results[i] for i in shown],
        title,
        expected=[truth[i] for i in shown],
        columns=12,
        labels=1,
        size=96,
    )
    page.save(out / "predictions.png")
    say(f"pictures with labels: {out / 'predictions.png'}")


def _check_transformers(model: torch.nn.Module, directory: Path, say: Callable[[str], None]) -> None:
    """The same directory in Hugging Face transformers, if installed, gives the same logits."""
    if find_spec("transformers") is None:
        say("transformers is not installed: its ViTForImageClassification was not compared")
        return
    # A torchvision of another torch build may be installed; transformers must not import it for this.
    with patch.dict(sys.modules, {"torchvision": None}):
        from transformers import ViTForImageClassification  # noqa: PLC0415
        from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415

        disable_progress_bar()  # type: ignore[no-untyped-call]
        theirs: Any = ViTForImageClassification.from_pretrained(directory)
    theirs.eval()
    x = torch.randn(16, 3, digits.SIZE, digits.SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        a, b = model(x), theirs(x).logits
    difference, largest = (a - b).abs().max().item(), b.abs().max().item()
    say(f"transformers opens {directory}: logits up to {largest:.1f} differ by at most {difference:.1e}")
    if not difference <= 1e-4 * largest:
        raise DemoError(
            f"transformers gives other logits: difference {difference:.2e}, largest {largest:.2f}"
        )
