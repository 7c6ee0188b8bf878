# SPDX-License-Identifier: Apache-2.0
"""Files of features and their names, written row by row: a collection need not fit in memory."""

import json
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vision_accel.infer._output import replacing

ENDINGS = (".npz", ".npy", ".safetensors")


class FeatureWriter:
    """Takes rows of features; see :func:`writing_features`."""

    def __init__(self, rows: IO[bytes]) -> None:
        self._rows = rows
        self._row: tuple[int, ...] | None = None
        self.sources: list[str] = []

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, ...] of what was added."""
        return (len(self.sources), *(self._row or ()))

    def add(self, source: str, features: NDArray[Any]) -> None:
        """One row, kept as float32, and the name of what it stands for.

        Raises:
            ValueError: the rows before it have another shape.
        """
        if self._row is not None and features.shape != self._row:
            raise ValueError(
                f"features: every row must be {list(self._row)}, got {list(features.shape)} for {source}"
            )
        self._row = features.shape
        self._rows.write(np.ascontiguousarray(features, "<f4").tobytes())
        self.sources.append(source)


@contextmanager
def writing_features(path: str | os.PathLike[str]) -> Iterator[FeatureWriter]:
    """A file of features that are added row by row, complete when the block ends well.

    ``.npz`` and ``.safetensors`` hold ``features`` [n, ...] and ``sources``; beside ``.npy``, a ``.txt`` has
    the sources. Rows wait in an unnamed file of the same folder, because their number is written first.

    Raises:
        ValueError: another ending.
        OSError: the place cannot be written, before anything is added.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path}: must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    with replacing(path) as file, tempfile.TemporaryFile(dir=path.parent) as rows:
        writer = FeatureWriter(rows)
        yield writer
        size = rows.tell()
        rows.seek(0)
        if path.suffix == ".safetensors":
            _safetensors_header(file, writer, size)
            shutil.copyfileobj(rows, file)
        elif path.suffix == ".npy":
            _npy(file, writer, rows)
            with replacing(path.with_suffix(".txt")) as names:
                names.writelines(f"{s}\n".encode() for s in writer.sources)
        else:
            with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
                with archive.open("features.npy", "w", force_zip64=True) as entry:
                    _npy(entry, writer, rows)
                with archive.open("sources.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, np.array(writer.sources, np.str_))


def _npy(file: IO[bytes], writer: FeatureWriter, rows: IO[bytes]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": writer.shape}
    np.lib.format.write_array_header_1_0(file, header)
    shutil.copyfileobj(rows, file)


def _safetensors_header(file: IO[bytes], writer: FeatureWriter, size: int) -> None:
    entry = {"dtype": "F32", "shape": writer.shape, "data_offsets": [0, size]}
    header = {"__metadata__": {"sources": json.dumps(writer.sources)}, "features": entry}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
    file.write(struct.pack("<Q", len(text)) + text)
