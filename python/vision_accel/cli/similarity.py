# SPDX-License-Identifier: Apache-2.0
"""``vision-accel similarity``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

import vision_accel as va
from vision_accel.cli._images import Placed, find, read_lines, write_grid
from vision_accel.cli._options import parse


@dataclass
class Similarity(Placed):
    """Print how well each image fits each text: vision-accel similarity MODEL photos/ --texts 'a red car'."""

    model: Annotated[Positional[str], arg(metavar="MODEL")] = tyro.MISSING
    """Directory or Hugging Face hub id of a CLIP or SigLIP."""
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE")] = ()
    """Files, folders or patterns."""
    texts: tuple[str, ...] = ()
    """The texts to compare with."""
    texts_file: Path | None = None
    """A file with more texts, one per line."""
    measure: Literal["cosine", "logits", "softmax", "sigmoid"] = "cosine"
    """Cosine of the embeddings, logits as in training, or the probability that these mean."""
    batch_size: int = 8
    """Images per pass; changes speed and memory, not results."""
    workers: int | None = None
    """Threads that read and prepare images (None: one per core)."""
    json: FlagCreatePairsOff[bool] = False
    """Print JSON."""
    grid: Path | None = None
    """Also write one PNG with all images and the texts that fit them best."""


def run(argv: list[str]) -> int:
    """Run the command."""
    options = parse(Similarity, argv, "vision-accel similarity")
    texts = [*options.texts, *read_lines(options.texts_file)]
    if not texts:
        raise ValueError("no texts given: name them with --texts or --texts-file")
    paths = find(options.images)
    model = options.load(options.model)
    table = va.similarity(
        model,
        paths,
        texts,
        measure=options.measure,
        batch_size=options.batch_size,
        workers=options.workers,
    ).tolist()
    if options.grid:
        ranked = [sorted(zip(texts, row, strict=True), key=lambda pair: -pair[1])[:3] for row in table]
        title = f"{len(paths)} images, {options.measure}"
        write_grid(options.grid, title, list(zip(paths, ranked, strict=True)))
    if options.json:
        print(json.dumps({"measure": options.measure, "texts": texts, "images": paths, "scores": table}))
        return 0
    names = [f"[{i + 1}]" for i in range(len(texts))]
    for name, text in zip(names, texts, strict=True):
        print(f"{name} {text}")
    width = min(48, max(map(len, paths)))
    print(" " * width + "".join(f"{name:>9}" for name in names))
    for path, row in zip(paths, table, strict=True):
        print(f"{path[-width:]:<{width}}" + "".join(f"{value:9.4f}" for value in row))
    return 0
