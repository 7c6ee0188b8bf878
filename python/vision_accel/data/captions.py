# SPDX-License-Identifier: Apache-2.0
"""Pictures with captions: folders, CSV and TSV files, and webdataset tars; all of them in any order."""

import csv
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from vision_accel.data.source import BadSample, DataError, read_file

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
_PATH_COLUMNS = ("filepath", "file_name", "image", "path", "url")
_CAPTION_COLUMNS = ("title", "caption", "text")


class Pair(NamedTuple):
    """One picture and its captions."""

    name: str
    captions: tuple[str, ...]
    file: str
    offset: int = -1  # in a tar; -1: the file is the picture
    size: int = 0

    def read(self) -> bytes:
        """The encoded picture."""
        if self.offset < 0:
            return read_file(self.file)
        with open(self.file, "rb") as f:  # noqa: PTH123  (in the inner loop of every worker)
            f.seek(self.offset)
            return f.read(self.size)


class Captions:
    """Captioned pictures.

    A folder holds pictures with a ``.txt`` of the same name beside each, one caption per line, at any depth;
    a ``.csv`` or ``.tsv`` has a column of paths (relative to the file) and one of captions; a ``.tar`` (or a
    pattern such as ``shards/*.tar``) holds samples whose files share a name up to the first dot.

    Args:
        source: folder, file or pattern; several with ``::`` between them.
        image_column: column of paths; found by its usual names if empty.
        caption_column: column of captions; likewise.

    Attributes:
        skipped: pictures without caption and captions without picture, which were left out.

    Raises:
        DataError: nothing there, or not of this form.
    """

    def __init__(self, source: str, image_column: str = "", caption_column: str = "") -> None:
        self.root, self.skipped = Path(source), 0
        self.pairs: list[Pair] = []
        for part in source.split("::"):
            files = sorted(glob(part, recursive=True)) if has_magic(part) else [part]  # noqa: PTH207
            for file in files:
                self.pairs += self._read(Path(file), image_column, caption_column)
        if not self.pairs:
            raise DataError(f"{source}: no pictures with captions ({self.skipped} without the other half)")
        self.labels = np.zeros(len(self.pairs), np.int64)
        self.classes: tuple[str, ...] = ("",)
        self.problems: list[BadSample] = []

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """Path of a picture, relative to its source."""
        return self.pairs[index].name

    def read(self, index: int) -> bytes:
        """The encoded picture."""
        return self.pairs[index].read()

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of a picture."""
        return self.pairs[index].captions

    def _read(self, path: Path, image_column: str, caption_column: str) -> Iterator[Pair]:
        if path.is_dir():
            return self._folder(path)
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        if path.suffix == ".tar":
            return self._tar(path)
        if path.suffix in {".csv", ".tsv"}:
            return self._table(path, image_column, caption_column)
        raise DataError(f"{path}: captions come from a folder, .csv, .tsv or .tar")

    def _folder(self, root: Path) -> Iterator[Pair]:
        for folder, folders, names in os.walk(root):
            folders.sort()
            present = set(names)
            for name in sorted(names):
                stem, ending = os.path.splitext(name)  # noqa: PTH122  (called for every file)
                if ending.lower() not in IMAGE_ENDINGS or name.startswith("."):
                    continue
                file = os.path.join(folder, name)  # noqa: PTH118
                text = os.path.join(folder, f"{stem}.txt")  # noqa: PTH118
                captions = _lines(Path(text)) if f"{stem}.txt" in present else ()
                if captions:
                    yield Pair(os.path.relpath(file, root), captions, file)
                else:
                    self.skipped += 1

    def _table(self, path: Path, image_column: str, caption_column: str) -> Iterator[Pair]:
        try:
            with path.open(encoding="utf-8-sig", newline="") as f:
                rows = csv.DictReader(f, delimiter="\t" if path.suffix == ".tsv" else ",")
                columns = rows.fieldnames or []
                image = _column(path, columns, image_column, _PATH_COLUMNS, "image_column")
                caption = _column(
                    path, columns, caption_column, _CAPTION_COLUMNS, "contrastive.caption_column"
                )
                for row in rows:
                    name, text = (row.get(image) or "").strip(), (row.get(caption) or "").strip()
                    if name and text:
                        yield Pair(name, (text,), str(path.parent / name))
                    else:
                        self.skipped += 1
        except (OSError, csv.Error, UnicodeDecodeError) as e:
            raise DataError(f"{path}: cannot read the table: {e}") from e

    def _tar(self, path: Path) -> Iterator[Pair]:
        samples: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if member.isfile():
                        folder, _, name = member.name.rpartition("/")
                        stem, _, ending = name.partition(".")
                        key = f"{folder}/{stem}" if folder else stem
                        found = samples.setdefault(key, {})
                        found[ending.lower()] = (member.offset_data, member.size)
            with path.open("rb") as f:
                for key, parts in samples.items():
                    captions = _tar_captions(f, parts)
                    images = [e for e in parts if f".{e}" in IMAGE_ENDINGS]
                    if images and captions:
                        offset, size = parts[images[0]]
                        yield Pair(f"{path.name}/{key}.{images[0]}", captions, str(path), offset, size)
                    else:
                        self.skipped += 1
        except (OSError, tarfile.TarError, ValueError) as e:
            raise DataError(f"{path}: not a whole tar of samples: {e}") from e


def _tar_captions(file: IO[bytes], parts: dict[str, tuple[int, int]]) -> tuple[str, ...]:
    for ending in ("txt", "caption", "json"):
        if ending in parts:
            offset, size = parts[ending]
            file.seek(offset)
            text = file.read(size).decode("utf-8", errors="replace")
            if ending == "json":
                content = json.loads(text)
                text = next((str(content[c]) for c in _CAPTION_COLUMNS if content.get(c)), "")
            return tuple(line.strip() for line in text.splitlines() if line.strip())
    return ()


def _lines(file: Path) -> tuple[str, ...]:
    text = file.read_text(encoding="utf-8", errors="replace")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _column(path: Path, columns: Sequence[str], wanted: str, usual: tuple[str, ...], option: str) -> str:
    for name in [wanted] if wanted else usual:
        if name in columns:
            return name
    raise DataError(
        f"{path}: no column {wanted or ' or '.join(usual)} (it has {', '.join(columns)});"
        f" name it with contrastive.{option}"
    )
