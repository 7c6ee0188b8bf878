# SPDX-License-Identifier: Apache-2.0
"""A small CLIP learns coloured shapes from captions, and names combinations that it has never seen."""

import csv
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import vision_accel as va
from vision_accel import infer, train
from vision_accel.demo import DemoError, scenes
from vision_accel.train.config import (
    AugmentOptions,
    Config,
    DataOptions,
    ModelOptions,
    OptimOptions,
    TrainOptions,
)
from vision_accel.train.contrastive_options import ContrastiveOptions

EPOCHS = 12
ACCURACY = 0.90  # the demo fails below this share
SHOWN = 48  # pictures in the grid


def options(out: Path, epochs: float, seed: int) -> Config:
    """A CLIP of 0.8 million weights on 32x32 pictures."""
    return Config(
        task="contrastive",
        data=DataOptions(
            train=str(out / "scenes/train.csv"), val=str(out / "scenes/test.csv"), batch_size=128, workers=1
        ),
        model=ModelOptions(
            name="test_clip",
            img_size=scenes.SIZE,
            overrides={
                "embed_dim": 64,
                "vision.patch_size": 8,
                "vision.embed_dim": 128,
                "vision.depth": 3,
                "text.depth": 1,
                "text.context_length": 12,
            },
        ),
        optim=OptimOptions(lr=2e-3, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6),
        augment=AugmentOptions(crop="center", flip=0.0),  # a mirrored scene has another caption
        contrastive=ContrastiveOptions(vocab_size=600),
        # "last": the pictures of unseen combinations must not choose the weights that they then judge.
        train=TrainOptions(
            out=str(out / "clip_run"), epochs=epochs, seed=seed, device="cpu", export="last", eval_every=200
        ),
    )


def run(
    out: Path,
    *,
    epochs: float = EPOCHS,
    seed: int = 0,
    pictures: int = 4000,
    say: Callable[[str], None] = lambda _: None,
) -> float:
    """Run the demo and leave everything it makes in ``out``.

    Returns:
        Zero-shot accuracy on combinations of colour and shape that were never seen in training, among all 48.

    Raises:
        DemoError: it is below 0.90.
    """
    start = time.monotonic()
    for old in ("scenes", "clip_run"):
        shutil.rmtree(out / old, ignore_errors=True)
    counts = scenes.write_scenes(out / "scenes", seed, pictures)
    say(f"scenes: {counts[0]} captioned pictures of {len(scenes.LABELS) - len(scenes.UNSEEN)} combinations,")
    say(f"        {counts[1]} of {len(scenes.UNSEEN)} others to test on, in {out / 'scenes'}")

    result = train.fit(options(out, epochs, seed))
    if result.stopped_by:
        raise DemoError(f"training was stopped by {result.stopped_by}")
    shutil.copyfile(result.run_dir / "curves.png", out / "clip_curves.png")
    say(f"trained {result.step} steps in {time.monotonic() - start:.0f} s; curves: {out / 'clip_curves.png'}")

    return judge(out, result, say)


def judge(out: Path, result: train.RunResult, say: Callable[[str], None]) -> float:
    """Zero-shot accuracy and retrieval of a finished run on the test pictures, with a picture of them."""
    model = va.load(result.run_dir / "model")
    with (out / "scenes/test.csv").open(encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    paths = [str(out / "scenes" / row["filepath"]) for row in rows]
    truth = [row["label"] for row in rows]
    found = list(
        infer.iter_zero_shot(
            model, paths, scenes.LABELS, scenes.TEMPLATES, top_k=3, batch_size=64, thumbnail=96
        )
    )
    right = [r.label == t for r, t in zip(found, truth, strict=True)]
    accuracy = sum(right) / len(right)
    metrics = result.metrics
    say(f"zero-shot accuracy on unseen combinations: {accuracy:.4f} ({len(right)} pictures, 48 labels)")
    for name, what in (("image_to_text", "caption of a picture"), ("text_to_image", "picture of a caption")):
        r1, r10 = metrics[f"eval_{name}_r1"], metrics[f"eval_{name}_r10"]
        say(f"retrieval of the {what} among {len(right)}: R@1 {r1:.3f}, R@10 {r10:.3f}")
    order = sorted(range(len(right)), key=lambda i: (right[i], i))[:SHOWN]
    page = infer.draw_grid(
        [found[i] for i in order],
        f"{len(right)} pictures of unseen combinations, {len(right) - sum(right)} mistakes (framed)",
        expected=[truth[i] for i in order],
        columns=12,
        labels=2,
        size=96,
    )
    page.save(out / "clip_predictions.png")
    say(f"pictures with labels: {out / 'clip_predictions.png'}")
    if accuracy < ACCURACY:
        raise DemoError(f"zero-shot accuracy {accuracy:.4f} is below {ACCURACY}")
    return accuracy
