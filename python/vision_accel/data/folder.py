# SPDX-License-Identifier: Apache-2.0
"""A folder of images, one sub-folder per class."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vision_accel.data.source import (
    IMAGE_EXTENSIONS,
    BadSample,
    DataError,
    Source,
    join,
    read_file,
    relabel,
)
from vision_accel.data.tars import Tars, tars_in


class ImageFolder:
    """The images below ``root``; the name of the first folder level is the class.

    Images may lie any number of folders deep inside a class folder. Hidden files and folders are left out.
    The order of files is that of their paths, whatever the file system returns. Paths are kept in one block
    of bytes, so that a million images cost tens of megabytes and worker processes share them.

    Args:
        root: the folder that holds one folder per class.
        classes: class names in label order; without it, the sorted names of the class folders.

    Raises:
        DataError: the folder is missing, unreadable or empty, or a class folder has no images or is not
            one of ``classes``.
    """

    def __init__(self, root: str | os.PathLike[str], classes: Sequence[str] | None = None) -> None:
        self.root, self.problems = Path(root), list[BadSample]()
        folders = _class_folders(self.root)
        self.classes: tuple[str, ...] = tuple(folders if classes is None else classes)
        number = {name: i for i, name in enumerate(self.classes)}
        unknown = [name for name in folders if name not in number]
        if unknown:
            raise DataError(
                f"{self.root}: class folder {unknown[0]!r} is not one of the {len(number)} classes"
            )

        names: list[bytes] = []
        labels: list[int] = []
        for name in folders:
            files = sorted(_images(self.root / name, os.fsencode(name)))
            if not files:
                raise DataError(
                    f"{self.root}: class folder {name!r} has no images ({' '.join(IMAGE_EXTENSIONS)})"
                )
            names += files
            labels += [number[name]] * len(files)
        self.labels: NDArray[np.int64] = np.array(labels, dtype=np.int64)
        self._ends: NDArray[np.int64] = np.cumsum([len(n) for n in names], dtype=np.int64)
        self._names = b"".join(names)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Path of an image, relative to the root."""
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._names[start : self._ends[index]])

    def path(self, index: int) -> Path:
        """Path of an image."""
        return self.root / self.name(index)

    def read(self, index: int) -> bytes:
        """The encoded image."""
        return read_file(self.path(index))

    def captions(self, index: int) -> tuple[str, ...]:
        """None."""
        return ()


class ImageFiles(ImageFolder):
    """All images below ``root``, at any depth and without classes: every label is 0.

    Raises:
        DataError: the folder is missing, unreadable or has no images.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root, self.classes, self.problems = Path(root), ("",), []
        names = sorted(n[1:] for n in _images(self.root, b""))
        if not names:
            raise DataError(f"{self.root}: no images ({' '.join(IMAGE_EXTENSIONS)})")
        self.labels = np.zeros(len(names), dtype=np.int64)
        self._ends = np.cumsum([len(n) for n in names], dtype=np.int64)
        self._names = b"".join(names)


def open_images(
    text: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
    *,
    labelled: bool = True,
    block: int = 0,
) -> Source:
    """Labelled images: a folder of one folder per class, webdataset tars, or several of these.

    Args:
        text: folder, tars or patterns, see ``source.expand``; several with ``::`` between them.
        classes: names of the labels, in their order; without it, those of the data.
        labelled: False takes all images, and their label is 0.
        block: see ``Tars``.

    Raises:
        DataError: nothing there, not of this form, or a class is not one of ``classes``.
    """

    def create(paths: list[Path]) -> Source:
        found = tars_in(paths)
        if found:
            return Tars(found, "label" if labelled else "image", block)
        if len(paths) > 1:
            raise DataError(f"{paths[1]}: several folders; put :: between them")
        return ImageFolder(paths[0]) if labelled else ImageFiles(paths[0])

    source = join(os.fspath(text), create)
    return source if classes is None else relabel(source, classes)


def _class_folders(root: Path) -> list[str]:
    try:
        entries = [e for e in os.scandir(root) if not e.name.startswith(".")]
    except OSError as e:
        raise DataError(f"{root}: cannot read the image folder: {e.strerror}") from e
    folders = sorted(e.name for e in entries if e.is_dir())
    if not folders:
        raise DataError(f"{root}: no class folders; images are expected at {root}/<class>/<image>")
    return folders


def _images(folder: Path, prefix: bytes) -> Iterator[bytes]:
    """Paths relative to the root of the images in one class folder, in no order."""
    pending = [(folder, prefix)]
    seen: set[tuple[int, int]] = set()  # a link may lead back to a folder above it
    while pending:
        here, name = pending.pop()
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            for entry in os.scandir(here):
                if entry.name.startswith("."):
                    continue
                relative = name + b"/" + os.fsencode(entry.name)
                if entry.name.lower().endswith(IMAGE_EXTENSIONS):
                    yield relative
                elif entry.is_dir():
                    pending.append((here / entry.name, relative))
        except OSError as e:
            raise DataError(f"{here}: cannot read the folder: {e.strerror}") from e


def too_many_bad(
    folder: str | os.PathLike[str], size: int, errors: dict[str, str], limit: float
) -> DataError:
    """The error for a folder with too many unreadable images, which names the first of them."""
    first = "; ".join(f"{file}: {why}" for file, why in list(errors.items())[:3])
    return DataError(
        f"{folder}: {len(errors)} of {size} images cannot be read, more than the allowed {limit:.2%};"
        f" first: {first}"
    )
