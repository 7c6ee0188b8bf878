# SPDX-License-Identifier: Apache-2.0
"""``vision-accel data pack | index | check``."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm.auto import tqdm
from tyro.conf import FlagCreatePairsOff, Positional, arg

from vision_accel._suggest import did_you_mean
from vision_accel.cli import SOME_IMAGES_BAD
from vision_accel.cli._images import complain
from vision_accel.cli._options import parse
from vision_accel.data.source import MAX_PIXELS, Source, expand

Kind = Literal["auto", "labels", "captions", "images"]


@dataclass
class Pack:
    """Write webdataset tars.

    They are made from a folder with one folder of images per class, from captioned images (a folder with a
    .txt beside each image, a .csv or a .tsv), or from other tars. Interrupted, the same command goes on
    behind the tars that are whole. The exit code is 3 when some samples could not be read.
    """

    data: Annotated[Positional[str], arg(metavar="DATA")] = tyro.MISSING
    """Folder, table, tars or patterns; several with :: between them."""
    out: Annotated[Positional[Path], arg(metavar="FOLDER")] = tyro.MISSING
    """Folder for the tars."""
    kind: Kind = "auto"
    """What the samples have besides an image; auto looks at the data."""
    max_count: int = 10_000
    """Samples per tar at most."""
    max_bytes: int = 1_000_000_000
    """Bytes per tar at most."""
    shuffle: bool = True
    """Mix the samples before they are written: neighbours in a tar are then no neighbours in the source."""
    seed: int = 0
    """Decides that order."""
    prefix: str = ""
    """Of the tars' names, before their numbers."""
    image_column: str = ""
    """Column of paths of a table; found by its usual names if empty."""
    caption_column: str = ""
    """Column of captions; likewise."""


@dataclass
class Index:
    """Write an index beside each tar, with which it opens at once.

    Without it, every run reads the headers of all the tars first.
    """

    data: Annotated[Positional[str], arg(metavar="TARS")] = tyro.MISSING
    """Tars, folders of tars or patterns such as data/{000..012}.tar; several with :: between them."""
    force: FlagCreatePairsOff[bool] = False
    """Write those anew that are there and fit their tar."""


@dataclass
class Check:
    """Find the samples that cannot be used.

    These are corrupt, truncated and too large images, half samples, missing captions, and what is behind the
    damage of a tar. The exit code is 3 when there are any.
    """

    data: Annotated[Positional[str], arg(metavar="DATA")] = tyro.MISSING
    """Folder, table, tars or patterns; several with :: between them."""
    kind: Kind = "auto"
    """What the samples have besides an image; auto looks at the data."""
    decode: bool = True
    """Decode every image, instead of only looking at files and headers."""
    max_pixels: int = MAX_PIXELS
    """Larger images count as broken."""
    threads: int = 0
    """Threads that decode; 0: one per core."""
    json: FlagCreatePairsOff[bool] = False
    """Print JSON."""
    image_column: str = ""
    """Column of paths of a table; found by its usual names if empty."""
    caption_column: str = ""
    """Column of captions; likewise."""


def run(argv: list[str]) -> int:
    """Run the command."""
    if not argv or argv[0] in {"-h", "--help"}:
        print("usage: vision-accel data COMMAND [OPTIONS]\n")
        print("  pack   write webdataset tars from folders of images, captioned images or other tars")
        print("  index  write the index of each tar, so that it opens quickly")
        print("  check  find the samples that cannot be used")
        return 0 if argv else 2
    commands: dict[str, Callable[[list[str]], int]] = {"pack": _pack, "index": _index, "check": _check}
    if argv[0] not in commands:
        hint = did_you_mean(argv[0], commands) or "; there are: pack, index, check"
        raise ValueError(f"unknown command {argv[0]!r}{hint}")
    return commands[argv[0]](argv[1:])


def _open(options: Pack | Check) -> tuple[Source, Kind]:
    from vision_accel.data.captions import open_captions  # noqa: PLC0415  (--help must not wait for these)
    from vision_accel.data.folder import open_images  # noqa: PLC0415

    kind = _kind(options.data) if options.kind == "auto" else options.kind
    if kind == "captions":
        return open_captions(options.data, options.image_column, options.caption_column), kind
    return open_images(options.data, labelled=kind == "labels"), kind


def _kind(data: str) -> Kind:
    """What the first tar has; otherwise whether there are captions."""
    from vision_accel.data.tars import Tars, tars_in  # noqa: PLC0415

    first = next(expand(data))
    tars = tars_in(first)
    if tars:
        source = Tars(tars[:1])
        if source.has_labels:
            return "labels"
        return "captions" if any(source.captions(i) for i in range(min(100, len(source)))) else "images"
    if first[0].suffix in {".csv", ".tsv"} or any(first[0].glob("*.txt")):
        return "captions"
    return "labels"


def _pack(argv: list[str]) -> int:
    options = parse(Pack, argv, "vision-accel data pack")
    from vision_accel.data.pack import pack  # noqa: PLC0415

    source, _ = _open(options)
    with tqdm(total=len(source), unit="sample", disable=None) as bar:
        result = pack(
            source,
            options.out,
            max_count=options.max_count,
            max_bytes=options.max_bytes,
            shuffle=options.shuffle,
            seed=options.seed,
            prefix=options.prefix,
            progress=bar.update,
        )
    bad = [*source.problems, *result.bad]
    for sample in bad:
        complain(sample.file, sample.error)
    kept = f", {result.kept} of them kept" if result.kept else ""
    print(f"{result.samples} samples in {len(result.shards)} tars{kept}: {options.out}")
    return SOME_IMAGES_BAD if bad else 0


def _index(argv: list[str]) -> int:
    options = parse(Index, argv, "vision-accel data index")
    from vision_accel.data.tars import load_index, save_index, scan, tars_in  # noqa: PLC0415

    tars = [tar for part in expand(options.data) for tar in tars_in(part)]
    if not tars:
        raise ValueError(f"{options.data}: no tars")
    written = samples = 0
    problems = []
    for tar in tqdm(tars, unit="tar", disable=None):
        index = None if options.force else load_index(tar)
        if index is None:
            index = scan(tar)
            save_index(tar, index)
            written += 1
        samples += index.total
        problems += [(f"{tar}/{b.file}", b.error) for b in index.problems]
    for name, why in problems:
        complain(name, why)
    print(f"{samples} samples in {len(tars)} tars; {written} of the indices written anew")
    return SOME_IMAGES_BAD if problems else 0


def _check(argv: list[str]) -> int:
    options = parse(Check, argv, "vision-accel data check")
    from vision_accel.data.check import check  # noqa: PLC0415

    source, kind = _open(options)
    with tqdm(total=len(source), unit="sample", disable=None) as bar:
        bad = check(
            source,
            captions=kind == "captions",
            decode=options.decode,
            max_pixels=options.max_pixels,
            threads=options.threads,
            progress=bar.update,
        )
    if options.json:
        print(json.dumps({"samples": len(source), "bad": [b._asdict() for b in bad]}, indent=2))
    else:
        for sample in bad:
            print(f"{sample.file}: {sample.error}")
        print(f"{len(source)} samples, {len(bad)} problem{'s' * (len(bad) != 1)}")
    return SOME_IMAGES_BAD if bad else 0
