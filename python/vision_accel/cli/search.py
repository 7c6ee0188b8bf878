# SPDX-License-Identifier: Apache-2.0
"""``vision-accel search``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

import vision_accel as va
from vision_accel.cli._images import Placed, write_grid
from vision_accel.cli._options import parse


@dataclass
class Search(Placed):
    """Find images in an index that `vision-accel embed` wrote, by a text or by an image."""

    model: Annotated[Positional[str], arg(metavar="MODEL")] = tyro.MISSING
    """The CLIP or SigLIP that made the index."""
    index: Annotated[Positional[Path], arg(metavar="INDEX")] = tyro.MISSING
    """The file: .npz, .npy or .safetensors."""
    query: Annotated[Positional[str], arg(metavar="QUERY")] = tyro.MISSING
    """A text, or with --image the file of an image."""
    image: FlagCreatePairsOff[bool] = False
    """The query is an image."""
    top_k: int = 10
    """Images to find."""
    json: FlagCreatePairsOff[bool] = False
    """Print JSON."""
    grid: Path | None = None
    """Also write one PNG with the images found."""


def run(argv: list[str]) -> int:
    """Run the command."""
    options = parse(Search, argv, "vision-accel search")
    index = va.infer.Index.load(options.index)
    model = options.load(options.model)
    query = Path(options.query) if options.image else options.query
    hits = va.search(model, index, query, options.top_k)[0]
    if options.json:
        print(json.dumps([hit._asdict() for hit in hits], indent=2))
    else:
        for hit in hits:
            print(f"{hit.score:7.4f}  {hit.source}")
    if options.grid:
        title = f"{options.query}: {len(hits)} of {len(index)} images"
        write_grid(options.grid, title, [(h.source, [("cosine", h.score)]) for h in hits])
    return 0
