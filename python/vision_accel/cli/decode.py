# SPDX-License-Identifier: Apache-2.0
"""``vision-accel decode``."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional, arg

import vision_accel as va
from vision_accel.cli._images import Placed, load_autoencoder, progress
from vision_accel.cli._options import parse

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Decode(Placed):
    """Turn latents into pictures: those of a file that `vision-accel reconstruct --latents` wrote.

    With --interpolate, the way between two of them; without a file, latents drawn at random.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")] = tyro.MISSING
    """Model directory, single file of LDM, or Hugging Face hub id."""
    latents: Annotated[Positional[Path | None], arg(metavar="LATENTS")] = None
    """Safetensors file: latents [C, h, w] by name."""
    output: Path | None = None
    """Folder for the pictures, as PNG files."""
    grid: Path | None = None
    """One PNG of all pictures."""
    interpolate: tuple[str, str] | None = None
    """Names of two latents of the file."""
    steps: int = 8
    """Pictures on the way between them, both included."""
    samples: int = 16
    """Random latents, where there is no file."""
    size: tuple[int, int] | None = None
    """Height and width of their pictures; the model's own if not given."""
    seed: int = 0
    """Of the random latents."""
    max_memory: str | None = None
    """Memory that activations may take, such as 2GB; the results are the same."""


def run(argv: list[str]) -> int:
    """Run the command."""
    options = parse(Decode, argv, "vision-accel decode")
    if options.output is None and options.grid is None:
        raise ValueError("nothing to write: name --output or --grid")
    if options.interpolate is not None and options.latents is None:
        raise ValueError("--interpolate: needs a file of latents")
    if options.size is not None and options.latents is not None:
        raise ValueError("--size: is for random latents; those of a file have theirs")
    model = load_autoencoder(options, options.model, options.max_memory)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
    count, pictures = _pictures(model, options)
    shown = []
    for i, (name, picture) in enumerate(progress(pictures, count)):
        if options.output is not None:
            picture.save(options.output / f"{i:05}_{name}.png")
        if options.grid is not None:
            shown.append(picture)
    if options.grid is not None:
        with va.infer.replacing(options.grid) as file:
            va.infer.draw_row(shown).save(file, format="PNG")
    print(f"{count} pictures: {', '.join(str(p) for p in (options.output, options.grid) if p)}")
    return 0


def _pictures(model: Any, options: Decode) -> "tuple[int, Iterator[tuple[str, Image]]]":
    """How many pictures come, and their names and themselves."""
    if options.latents is None:
        drawn = va.infer.sample(model, options.samples, options.size, options.seed)
        return options.samples, (("sample", p) for p in drawn)
    latents = va.infer.load_latents(options.latents)
    if options.interpolate is None:
        found = ((Path(name).stem, va.infer.decode(model, z[None])[0]) for name, z in latents.items())
        return len(latents), found
    for name in options.interpolate:
        if name not in latents:
            raise ValueError(f"{options.latents}: has no latent {name!r}")
    a, b = (latents[name] for name in options.interpolate)
    way = va.infer.interpolate(model, a, b, options.steps)
    return len(way), (("between", p) for p in way)
