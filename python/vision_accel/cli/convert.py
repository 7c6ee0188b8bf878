# SPDX-License-Identifier: Apache-2.0
"""``vision-accel convert``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

import vision_accel as va
from vision_accel.cli._options import parse


@dataclass
class Convert:
    """Rewrite a model directory in the layout of another library; the outputs stay the same."""

    source: Annotated[Positional[str], arg(metavar="SRC")] = tyro.MISSING
    """Model directory or Hugging Face hub id, in any layout that va.load reads."""
    target: Annotated[Positional[Path], arg(metavar="DST")] = tyro.MISSING
    """Directory to write."""
    layout: Literal["hf", "timm", "open_clip", "diffusers", "ldm"] = "hf"
    """hf: transformers reads it; timm: timm.create_model reads it (ViT); open_clip: open_clip.create_model
    (CLIP); diffusers, ldm: the two layouts of an autoencoder."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Allow a directory that has files in it."""


def run(argv: list[str]) -> int:
    """Run the command."""
    options = parse(Convert, argv, "vision-accel convert")
    if not options.overwrite and options.target.is_dir() and any(options.target.iterdir()):
        raise ValueError(f"{options.target}: is not empty; --overwrite writes into it all the same")
    model = va.load(options.source)
    va.save(model, options.target, layout=options.layout)
    print(f"{options.target}: {model.num_params() / 1e6:.1f} million weights in {options.layout} layout")
    return 0
