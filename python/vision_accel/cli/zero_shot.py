# SPDX-License-Identifier: Apache-2.0
"""``vision-accel zero-shot``."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

import vision_accel as va
from vision_accel.cli._images import Placed, find, read_lines
from vision_accel.cli._options import parse
from vision_accel.cli.classify import show


@dataclass
class ZeroShot(Placed):
    """Label images with words of your own: vision-accel zero-shot MODEL photos/ --labels cat dog 'hot dog'.

    The exit code is 3 when some images could not be read; the others are labelled all the same.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")] = tyro.MISSING
    """Directory or Hugging Face hub id of a CLIP or SigLIP."""
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE")] = ()
    """Files, folders or patterns."""
    labels: tuple[str, ...] = ()
    """The labels to choose from."""
    labels_file: Path | None = None
    """A file with more labels, one per line."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Texts around a label ({}); the embeddings of several are averaged."""
    top_k: int = 5
    """Labels per image."""
    batch_size: int = 8
    """Images per pass; changes speed and memory, not results."""
    function: Literal["softmax", "sigmoid", "none"] | None = None
    """How logits become scores; softmax for a CLIP and sigmoid for a SigLIP if not set."""
    workers: int | None = None
    """Threads that read and prepare images (None: one per core)."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON list instead of the table."""
    html: Path | None = None
    """Also write a page with every image, its labels and scores; it needs no network."""
    grid: Path | None = None
    """Also write one PNG with the first 60 images and their labels."""


def run(argv: list[str]) -> int:
    """Run the command."""
    options = parse(ZeroShot, argv, "vision-accel zero-shot")
    labels = [*options.labels, *read_lines(options.labels_file)]
    if not labels:
        raise ValueError("no labels given: name them with --labels or --labels-file")
    paths = find(options.images)
    results = partial(
        va.infer.iter_zero_shot,
        options.load(options.model),
        paths,
        labels,
        options.templates,
        top_k=options.top_k,
        batch_size=options.batch_size,
        function=options.function,
        workers=options.workers,
        on_error="skip",
    )
    return show(results, paths, options.model, options)
