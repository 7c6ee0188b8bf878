# SPDX-License-Identifier: Apache-2.0
"""A small CLIP learns coloured shapes from captions, and names combinations that it has never seen."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

import vision_accel as va
from vision_accel import infer, train
from vision_accel.demo import scenes
from vision_accel.demo.errors import DemoError
from vision_accel.demo.training import fit, run_options
from vision_accel.train.config import AugmentOptions, DataOptions, ModelOptions, OptimOptions
from vision_accel.train.contrastive_options import ContrastiveOptions

ACCURACY = 0.90  # the demo fails below this share
SHOWN = 48  # pictures in the grid of labels
QUERIES, FOUND = 6, 8  # rows and columns of the picture of retrieval


def options(out: Path, steps: int, seed: int) -> train.Config:
    """A CLIP of 0.7 million weights on 32x32 pictures."""
    return train.Config(
        task="contrastive",
        data=DataOptions(
            train=str(out / "scenes/train.csv"), val=str(out / "scenes/test.csv"), batch_size=128, workers=1
        ),
        model=ModelOptions(
            name="test_clip",
            img_size=scenes.SIZE,
            overrides={
                "vision.embed_dim": 128,
                "vision.num_heads": 4,
                "vision.depth": 3,
                "text.depth": 1,
                "text.context_length": 12,
            },
        ),
        optim=OptimOptions(lr=1.5e-3, weight_decay=0.2, betas=(0.9, 0.98), eps=1e-6),
        # A mirrored scene has another caption, and so has one of which much is cut off.
        augment=AugmentOptions(scale=(0.8, 1.0), ratio=(0.9, 1.1), flip=0.0),
        contrastive=ContrastiveOptions(vocab_size=600),
        train=run_options(out, steps, seed),
    )


def run(
    out: Path,
    *,
    steps: int = 2500,
    seed: int = 0,
    resume: bool = False,
    pictures: int = 12000,
    say: Callable[[str], None] = lambda _: None,
) -> float:
    """Run the demo and leave everything it makes in ``out``.

    Args:
        out: where to.
        steps: of training.
        seed: of everything.
        resume: go on with a run that was interrupted, instead of starting anew.
        pictures: to train on.
        say: gets a line of text now and then.

    Returns:
        Zero-shot accuracy on combinations of colour and shape that were never seen in training, among all 78.

    Raises:
        DemoError: it is below 0.90, or the run was stopped.
    """
    if not resume:
        for old in ("scenes", "run"):
            shutil.rmtree(out / old, ignore_errors=True)
    counts = scenes.write_scenes(out / "scenes", seed, pictures)
    say(f"scenes: {counts[0]} captioned pictures of {len(scenes.SEEN)} combinations of colour and shape,")
    say(f"        {counts[1]} of {len(scenes.UNSEEN)} others to test on, in {out / 'scenes'}")

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))  # one core for the process that reads pictures
    try:
        result = fit(options(out, steps, seed), out, say, "; --resume goes on with it")
    finally:
        torch.set_num_threads(threads)

    model = va.load(result.run_dir / "model")
    with (out / "scenes/test.csv").open(encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    truth = {str(out / "scenes" / row["filepath"]): row["label"] for row in rows}
    accuracy = _label(model, truth, out, say)
    for name, what in (("image_to_text", "caption of a picture"), ("text_to_image", "picture of a caption")):
        r1, r10 = (result.metrics[f"eval_{name}_r{k}"] for k in (1, 10))
        say(f"retrieval of the {what} among {len(rows)}: R@1 {r1:.3f}, R@10 {r10:.3f}")
    _search(model, truth, out, say)
    if accuracy < ACCURACY:
        raise DemoError(f"zero-shot accuracy {accuracy:.4f} is below {ACCURACY}")
    return accuracy


def _label(model: va.CLIP, truth: dict[str, str], out: Path, say: Callable[[str], None]) -> float:
    """Zero-shot accuracy on the test pictures, and some of them with their labels, mistakes first."""
    found = list(
        infer.iter_zero_shot(
            model, list(truth), scenes.LABELS, scenes.TEMPLATES, top_k=3, batch_size=64, thumbnail=96
        )
    )
    right = [r.label == truth[r.source] for r in found]
    accuracy = sum(right) / len(right)
    say(
        f"zero-shot accuracy on combinations never seen in training: {accuracy:.4f}"
        f" ({len(right)} pictures, {len(scenes.LABELS)} labels)"
    )
    order = sorted(range(len(right)), key=lambda i: (right[i], i))[:SHOWN]
    page = infer.draw_grid(
        [found[i] for i in order],
        f"{len(right)} pictures of combinations never seen, {len(right) - sum(right)} mistakes (framed)",
        expected=[truth[found[i].source] for i in order],
        columns=12,
        labels=1,
        size=96,
    )
    page.save(out / "predictions.png")
    say(f"pictures with labels: {out / 'predictions.png'}")
    return accuracy


def _search(model: va.CLIP, truth: dict[str, str], out: Path, say: Callable[[str], None]) -> None:
    """Draw the test pictures that are nearest to some texts."""
    index = infer.Index(va.embed(model, list(truth), batch_size=64), list(truth))
    queries = scenes.UNSEEN[:QUERIES]
    cards, expected = [], []
    for query, hits in zip(
        queries, va.search(model, index, [f"a {q} shape" for q in queries], FOUND), strict=True
    ):
        for hit in hits:
            card = infer.Classification(hit.source, [infer.Prediction(truth[hit.source], hit.score)])
            with Image.open(hit.source) as picture:
                card.thumbnail = picture.convert("RGB")
            cards.append(card)
            expected.append(query)
    title = "nearest to: " + ", ".join(queries)
    infer.draw_grid(cards, title, expected=expected, columns=FOUND, labels=1, size=96).save(
        out / "retrieval.png"
    )
    say(f"pictures found for texts: {out / 'retrieval.png'}")
