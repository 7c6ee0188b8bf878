# SPDX-License-Identifier: Apache-2.0
"""``vision-accel reconstruct``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

import vision_accel as va
from vision_accel.cli import SOME_IMAGES_BAD
from vision_accel.cli._images import Placed, complain, find, load_autoencoder, progress
from vision_accel.cli._options import parse


@dataclass
class Reconstruct(Placed):
    """Encode and decode images with an autoencoder; prints the PSNR of each in dB.

    The exit code is 3 when some images could not be read.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")] = tyro.MISSING
    """Model directory, single file of LDM, or Hugging Face hub id."""
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE")] = ()
    """Files, folders or patterns."""
    output: Path | None = None
    """Folder for the reconstructions, as PNG files."""
    grid: Path | None = None
    """Picture of the first images above their reconstructions."""
    grid_size: int = 16
    """Images in that picture."""
    latents: Path | None = None
    """Safetensors file for the latents."""
    max_memory: str | None = None
    """Memory that activations may take, such as 2GB; the results are the same."""
    batch_size: int = 1
    """Images of equal size per pass; changes speed and memory, not results."""
    quiet: FlagCreatePairsOff[bool] = False
    """Print the mean only."""


def run(argv: list[str]) -> int:
    """Run the command."""
    options = parse(Reconstruct, argv, "vision-accel reconstruct")
    paths = find(options.images)
    model = load_autoencoder(options, options.model, options.max_memory)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
    bad, values = 0, []
    shown: list[va.infer.Reconstruction] = []
    results = va.reconstruct(model, paths, batch_size=options.batch_size, on_error="skip")
    for i, result in enumerate(progress(results, len(paths))):
        bad += complain(result.source, result.error)
        if result.output is None or result.psnr is None:
            continue
        values.append(result.psnr)
        if not options.quiet:
            print(f"{result.source}\t{result.psnr:.2f}")
        if options.output is not None:
            result.output.save(options.output / f"{i:05}_{Path(result.source).stem}.png")
        if options.grid is not None and len(shown) < options.grid_size:
            shown.append(result)
    if not values:
        raise ValueError(f"none of the {len(paths)} images could be read")
    print(f"mean PSNR {sum(values) / len(values):.2f} dB of {len(values)} images")
    if options.grid is not None:
        with va.infer.replacing(options.grid) as file:
            va.infer.draw_pairs(shown).save(file, format="PNG")
    if options.latents is not None:
        good = [p for p in paths if not _is_bad(p)]
        va.infer.save_latents(model, good, options.latents)
    return SOME_IMAGES_BAD if bad else 0


def _is_bad(path: str) -> bool:
    from vision_accel.data.images import ImageError, load_image  # noqa: PLC0415

    try:
        load_image(path)
    except ImageError:
        return True
    return False
