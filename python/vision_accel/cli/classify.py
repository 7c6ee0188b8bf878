# SPDX-License-Identifier: Apache-2.0
"""``vision-accel classify``."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

import vision_accel as va
from vision_accel.cli import SOME_IMAGES_BAD
from vision_accel.cli._images import Placed, complain, find, progress
from vision_accel.cli._options import parse

if TYPE_CHECKING:
    from vision_accel.infer import Classification

GRID_LIMIT = 60


@dataclass
class Classify(Placed):
    """Label images: files, folders (with everything below) and patterns such as 'photos/*.jpg'.

    The exit code is 3 when some images could not be read; the others are labelled all the same.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")] = tyro.MISSING
    """Model directory or Hugging Face hub id."""
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE")] = ()
    """Files, folders or patterns."""
    top_k: int = 5
    """Labels per image."""
    batch_size: int = 8
    """Images per pass; changes speed and memory, not results."""
    function: Literal["softmax", "sigmoid", "none"] = "softmax"
    """How logits become scores."""
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
    options = parse(Classify, argv, "vision-accel classify")
    paths = find(options.images)
    model = options.load(options.model)
    results = partial(
        va.infer.iter_classify,
        model,
        paths,
        options.top_k,
        batch_size=options.batch_size,
        function=options.function,
        workers=options.workers,
        on_error="skip",
    )
    return show(results, paths, options.model, options)


class Shown(Protocol):
    """The options that say how labels are shown."""

    json: bool
    html: Path | None
    grid: Path | None


def show(
    results: "Callable[..., Iterator[Classification]]", paths: Sequence[str], title: str, options: Shown
) -> int:
    """Print the labels of images and write the pages that are asked for; returns the exit code."""
    thumbnail = 400 if options.html else 200 if options.grid else 0
    bad = 0
    pictures: list[Classification] = []
    with ExitStack() as stack:
        # Both files are opened first: a place that cannot be written is known before the work.
        page = options.html and stack.enter_context(va.infer.HtmlReport(options.html, f"{title}: labels"))
        grid = options.grid and stack.enter_context(va.infer.replacing(options.grid))
        width = min(48, max(map(len, paths)))
        for place, result in enumerate(progress(results(thumbnail=thumbnail), len(paths))):
            bad += complain(result.source, result.error)
            if options.json:
                print(("," if place else "[") + json.dumps(_record(result)))
            elif result.error is None:
                print(_row(result.source, width, result.predictions))
            if page:
                page.add(result)
            if grid and len(pictures) < GRID_LIMIT:
                pictures.append(result)
        if options.json:
            print("]")
        if grid:
            some = f"first {len(pictures)} of " if len(paths) > len(pictures) else ""
            head = f"{title}: {some}{len(paths)} images"
            va.infer.draw_grid(pictures, head).save(grid, "PNG")
    return SOME_IMAGES_BAD if bad else 0


def _record(result: "Classification") -> dict[str, Any]:
    predictions = [prediction._asdict() for prediction in result.predictions]
    return {"source": result.source, "predictions": predictions, "error": result.error}


def _row(source: str, width: int, predictions: Sequence[tuple[str, float]]) -> str:
    name = source if len(source) <= width else "…" + source[len(source) - width + 1 :]
    cells = [f"{label} {100 * p:.1f}%" if 0 <= p <= 1 else f"{label} {p:.2f}" for label, p in predictions]
    return f"{name:<{width}}  {'  '.join(cells)}"
