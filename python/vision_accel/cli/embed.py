# SPDX-License-Identifier: Apache-2.0
"""``vision-accel embed``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

import vision_accel as va
from vision_accel.cli import SOME_IMAGES_BAD
from vision_accel.cli._images import Placed, complain, find, progress, read_lines
from vision_accel.cli._options import parse

_TEXTS = 1024  # embedded at a time


@dataclass
class Embed(Placed):
    """Write the features [n, C] of images, or of texts, and their names to a file.

    .npz and .safetensors hold both; beside .npy, a .txt has the names.

    The exit code is 3 when some images could not be read; the file then has the others.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")] = tyro.MISSING
    """Model directory or Hugging Face hub id."""
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE")] = ()
    """Files, folders or patterns."""
    texts_file: Path | None = None
    """Embed the lines of this file instead of images, with a CLIP."""
    output: Path = Path("features.npz")
    """The file to write: .npz, .npy or .safetensors."""
    pooling: Literal["model", "token", "avg", "none"] = "model"
    """What the model's classifier sees, the class token, the mean of the patches, or every token."""
    normalize: FlagCreatePairsOff[bool] = False
    """Scale each vector to length 1."""
    batch_size: int = 8
    """Images per pass; changes speed and memory, not results."""
    workers: int | None = None
    """Threads that read and prepare images (None: one per core)."""


def run(argv: list[str]) -> int:
    """Run the command."""
    options = parse(Embed, argv, "vision-accel embed")
    if options.output.suffix not in va.infer.features.ENDINGS:
        raise ValueError(f"--output: must end in .npz, .npy or .safetensors, got {options.output}")
    if options.texts_file is not None:
        return _embed_texts(options)
    paths = find(options.images)
    bad = 0
    with va.infer.writing_features(options.output) as file:  # an unwritable place is known before the work
        model = options.load(options.model)
        results = va.infer.iter_embed(
            model,
            paths,
            options.pooling,
            batch_size=options.batch_size,
            normalize=options.normalize,
            workers=options.workers,
            on_error="skip",
        )
        for result in progress(results, len(paths)):
            bad += complain(result.source, result.error)
            if result.features is not None:
                file.add(result.source, result.features.numpy())
        if not file.sources:
            raise ValueError(f"none of the {len(paths)} images could be read")
    print(f"{options.output}: features {list(file.shape)}")
    return SOME_IMAGES_BAD if bad else 0


def _embed_texts(options: Embed) -> int:
    if options.images:
        raise ValueError("name images or --texts-file, not both")
    if options.pooling != "model":
        raise ValueError("--pooling: is for images; a text has one embedding")
    texts = read_lines(options.texts_file)
    if not texts:
        raise ValueError(f"{options.texts_file}: has no lines")
    with va.infer.writing_features(options.output) as file:
        model = options.load(options.model)
        for i in range(0, len(texts), _TEXTS):
            some = texts[i : i + _TEXTS]
            for text, row in zip(some, va.embed_text(model, some, normalize=options.normalize), strict=True):
                file.add(text, row.numpy())
    print(f"{options.output}: features {list(file.shape)}")
    return 0
