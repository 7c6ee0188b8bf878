# SPDX-License-Identifier: Apache-2.0
"""Pictures with captions: folders, CSV and TSV files, and webdataset tars; all of them in any order."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vision_accel.data.source import IMAGE_EXTENSIONS, BadSample, DataError, Source, join, lines, read_file
from vision_accel.data.tars import CAPTION_KEYS, Tars, tars_in

_PATH_COLUMNS = ("filepath", "file_name", "image", "path", "url")


def open_captions(text: str, image_column: str = "", caption_column: str = "", *, block: int = 0) -> Source:
    """Captioned pictures.

    A folder holds tars, or pictures with a ``.txt`` of the same name beside each, one caption per line, at
    any depth; a ``.csv`` or ``.tsv`` has a column of paths (relative to the file) and one of captions; for
    tars see ``Tars``.

    Args:
        text: folder, file or pattern, see ``source.expand``; several with ``::`` between them.
        image_column: column of paths; found by its usual names if empty.
        caption_column: column of captions; likewise.
        block: see ``Tars``.

    Raises:
        DataError: nothing there, or not of this form.
    """

    def create(paths: list[Path]) -> Source:
        tars = tars_in(paths)
        return Tars(tars, "caption", block) if tars else CaptionFiles(paths, image_column, caption_column)

    return join(text, create)


class CaptionFiles:
    """Captioned pictures in files of their own; see ``open_captions``.

    Raises:
        DataError: nothing there, or not of this form.
    """

    def __init__(self, paths: Sequence[Path], image_column: str = "", caption_column: str = "") -> None:
        self.root = paths[0] if len(paths) == 1 else Path(os.path.commonpath([p.parent for p in paths]))
        self.problems: list[BadSample] = []
        self._captions: list[tuple[str, ...]] = []
        self._names: list[str] = []  # below the root
        for path in paths:
            for file, captions in self._read(path, image_column, caption_column):
                self._names.append(os.path.relpath(file, self._folder))
                self._captions.append(captions)
        if not len(self):
            raise DataError(
                f"{self.root}: no pictures with captions ({len(self.problems)} without the other half)"
            )
        self.labels = np.zeros(len(self), np.int64)
        self.classes: tuple[str, ...] = ("",)

    @property
    def _folder(self) -> Path:
        return self.root.parent if self.root.suffix in {".csv", ".tsv"} else self.root

    def __len__(self) -> int:
        return len(self._captions)

    def name(self, index: int) -> str:
        """Path of a picture, relative to the folder of the source."""
        return self._names[index]

    def read(self, index: int) -> bytes:
        """The encoded picture."""
        return read_file(self._folder / self._names[index])

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of a picture."""
        return self._captions[index]

    def _read(
        self, path: Path, image_column: str, caption_column: str
    ) -> Iterator[tuple[str, tuple[str, ...]]]:
        if path.is_dir():
            return self._beside(path)
        if path.suffix in {".csv", ".tsv"}:
            return self._table(path, image_column, caption_column)
        raise DataError(f"{path}: captions come from a folder, .csv, .tsv or .tar")

    def _beside(self, root: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
        for folder, folders, names in os.walk(root):
            folders.sort()
            present = set(names)
            for name in sorted(names):
                stem, ending = os.path.splitext(name)  # noqa: PTH122  (called for every file)
                if ending.lower() not in IMAGE_EXTENSIONS or name.startswith("."):
                    continue
                file = os.path.join(folder, name)  # noqa: PTH118
                text = Path(folder) / f"{stem}.txt"
                captions = lines(text.read_text("utf-8", "replace")) if text.name in present else ()
                if captions:
                    yield file, captions
                else:
                    self.problems.append(BadSample(os.path.relpath(file, root), "no caption"))

    def _table(
        self, path: Path, image_column: str, caption_column: str
    ) -> Iterator[tuple[str, tuple[str, ...]]]:
        try:
            with path.open(encoding="utf-8-sig", newline="") as f:
                rows = csv.DictReader(f, delimiter="\t" if path.suffix == ".tsv" else ",")
                columns = rows.fieldnames or []
                image = _column(path, columns, image_column, _PATH_COLUMNS, "image_column")
                caption = _column(path, columns, caption_column, CAPTION_KEYS, "caption_column")
                for row in rows:
                    name, text = (row.get(image) or "").strip(), (row.get(caption) or "").strip()
                    if name and text:
                        yield str(path.parent / name), (text,)
                    else:
                        where = name or f"{path.name}, line {rows.line_num}"
                        self.problems.append(BadSample(where, "no caption" if name else "no path"))
        except (OSError, csv.Error, UnicodeDecodeError) as e:
            raise DataError(f"{path}: cannot read the table: {e}") from e


def _column(path: Path, columns: Sequence[str], wanted: str, usual: tuple[str, ...], option: str) -> str:
    for name in [wanted] if wanted else usual:
        if name in columns:
            return name
    raise DataError(
        f"{path}: no column {wanted or ' or '.join(usual)} (it has {', '.join(columns)});"
        f" name it with contrastive.{option}"
    )
