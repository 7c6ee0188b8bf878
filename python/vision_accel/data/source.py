# SPDX-License-Identifier: Apache-2.0
"""Where samples come from: what every source offers, and the sources that a text names.

A source is read by number, in any order. Order, shares of processes, resuming and the treatment of bad
samples are therefore functions of numbers alone (``data.sampler``), the same for folders and tars and for
every loader.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MAX_BYTES = 1 << 28  # of an encoded image
MAX_PIXELS = 89_478_485  # of a decoded one; Pillow's default: a quarter of a gigabyte as RGB


class DataError(ValueError):
    """A data set that cannot be used; the message names the folder or the files."""


class SampleError(ValueError):
    """One sample cannot be used; the message says why, without its name."""


class BadSample(NamedTuple):
    """A sample that cannot be used, and why."""

    file: str
    error: str


class Source(Protocol):
    """Samples by number: encoded images with labels or captions.

    Attributes:
        root: what messages call the source.
        labels: [n] int64; 0 where there are no classes.
        classes: names of the labels, in their order.
        problems: samples that were left out (halves of pairs, what lies behind the cut of a truncated tar).
    """

    root: Path
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    problems: list[BadSample]

    def __len__(self) -> int:
        """Number of samples."""

    def name(self, index: int) -> str:
        """What the run directory calls a sample; no two have the same name."""

    def read(self, index: int) -> bytes:
        """The encoded image. Raises OSError or SampleError. Any thread and any worker process may call it."""

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of a sample, () where there are none. Raises OSError or SampleError."""


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file; SampleError if there are more than an image can have, or it is no regular file."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not block
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise SampleError("not a regular file")
        check_size(status.st_size)
        with open(file, "rb", buffering=0, closefd=False) as whole:  # os.read may stop early
            return whole.readall()
    finally:
        os.close(file)


def check_size(size: int) -> None:
    """SampleError for a file that is too large to be an image."""
    if size > MAX_BYTES:
        raise SampleError(f"the file is larger than {MAX_BYTES >> 20} MiB")


def lines(text: str) -> tuple[str, ...]:
    """The lines of a text that are not empty."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


class Joined:
    """Several sources one after the other; labels are matched by the names of the classes.

    Attributes:
        sizes: [k], the number of samples of each source.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self.root = Path("::".join(str(s.root) for s in sources))
        self.sizes = [len(s) for s in sources]
        self._starts = np.cumsum([0, *self.sizes])
        self.classes = _all_classes([s.classes for s in sources])
        self.labels = np.concatenate([relabel(s, self.classes).labels for s in sources])
        self.problems = [BadSample(f"{s.root}/{b.file}", b.error) for s in sources for b in s.problems]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, index: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self._starts, index, "right")) - 1
        return self.sources[part], int(index - self._starts[part])

    def name(self, index: int) -> str:
        """The name of the sample below that of its source."""
        source, i = self._place(index)
        return f"{source.root}/{source.name(i)}"

    def read(self, index: int) -> bytes:
        """The encoded image."""
        source, i = self._place(index)
        return source.read(i)

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions."""
        source, i = self._place(index)
        return source.captions(i)


def relabel(source: Source, classes: Sequence[str]) -> Source:
    """Give a source the label numbers of ``classes``, and return it.

    A source that knows only numbers ("0", "1", ...) keeps them, whatever the classes are called.

    Raises:
        DataError: a class is not one of ``classes``.
    """
    if source.classes != tuple(classes):
        number = {name: i for i, name in enumerate(classes)}
        if _numbers(source.classes) and len(source.classes) <= len(classes):
            number |= {name: int(name) for name in source.classes}
        unknown = [name for name in source.classes if name not in number]
        if unknown:
            raise DataError(f"{source.root}: class {unknown[0]!r} is not one of the {len(classes)} classes")
        source.labels = np.array([number[name] for name in source.classes], np.int64)[source.labels]
        source.classes = tuple(classes)
    return source


def _numbers(classes: Sequence[str]) -> bool:
    return list(classes) == [str(i) for i in range(len(classes))]


def _all_classes(parts: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    if all(_numbers(p) for p in parts):
        return max(parts, key=len)
    named = [p for p in parts if not _numbers(p)]
    return named[0] if len(set(named)) == 1 else tuple(sorted({name for p in named for name in p}))


def expand(text: str) -> Iterator[list[Path]]:
    """The files and folders of each part of ``a::b``, in order.

    A part may be a pattern with ``*``, ``?``, ``[]``, with ranges such as ``{000..012}`` and with choices
    such as ``{train,val}``.

    Raises:
        DataError: a part names nothing, or something on another machine.
    """
    for part in text.split("::"):
        if not part:
            raise DataError(f"{text!r}: names no file or folder")
        if re.match(r"[a-z0-9]+:(//)?", part) and not Path(part).exists():
            raise DataError(f"{part}: only files of this machine can be read")
        found: list[Path] = []
        for name in _braces(part):
            here = sorted(glob(name, recursive=True)) if has_magic(name) else [name]  # noqa: PTH207
            if not here or not all(Path(p).exists() for p in here):
                raise DataError(f"{name}: no such file or folder")
            found += map(Path, here)
        yield found


def _braces(pattern: str) -> Iterator[str]:
    """{000..012} and {a,b} spelled out, as a shell does it."""
    match = re.search(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}", pattern)
    if match is None or Path(pattern).exists():
        yield pattern
        return
    if re.search(r"\{[^{}]*\{", pattern):
        raise DataError(f"{pattern}: braces inside braces are not supported")
    inside, choices = match[1], match[1].split(",")
    limits = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if limits is not None:
        first, last = int(limits[1]), int(limits[2])
        step, padded = (1 if first <= last else -1), inside.startswith("0") or ".0" in inside
        width = max(len(limits[1]), len(limits[2])) if padded else 1
        choices = [f"{i:0{width}}" for i in range(first, last + step, step)]
    for choice in choices:
        yield from _braces(pattern[: match.start()] + choice + pattern[match.end() :])


def join(text: str, create: Callable[[list[Path]], Source]) -> Source:
    """The source that ``text`` names; see ``expand`` for its form.

    Args:
        text: paths and patterns, several with ``::`` between them.
        create: makes the source of one part.
    """
    sources = [create(paths) for paths in expand(text)]
    return sources[0] if len(sources) == 1 else Joined(sources)
