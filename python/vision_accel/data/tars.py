# SPDX-License-Identifier: Apache-2.0
"""webdataset tars, read at random through an index of where each sample lies."""

import json
import logging
import os
import tarfile
import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_accel.data.source import IMAGE_EXTENSIONS, BadSample, DataError, SampleError, check_size, lines

_log = logging.getLogger(__name__)
_VERSION = 1
_MAX_OPEN = 256  # tars that a process keeps open; the others are opened for each sample
_CAPTION_ENDINGS = ("txt", "caption", "json")  # the first that a sample has counts
CAPTION_KEYS = ("title", "caption", "text")  # of a table's columns and of a sample's .json

Need = Literal["image", "label", "caption"]
Int64 = NDArray[np.int64]


class TarIndex(NamedTuple):
    """Where the samples of a tar lie. Every array is [n], for samples whole and half alike."""

    image: Int64  # first byte; -1: the sample has no image
    image_size: Int64
    caption: Int64  # likewise
    caption_size: Int64
    caption_kind: Int64  # which of _CAPTION_ENDINGS
    label: Int64  # -1: none
    name_end: Int64
    names: NDArray[np.uint8]  # names of the images, or keys, one after the other
    problems: tuple[BadSample, ...]  # what is in no sample

    @property
    def total(self) -> int:
        """Number of samples."""
        return len(self.image)


def index_path(tar: Path) -> Path:
    """Where the index of a tar is kept."""
    return tar.with_name(f"{tar.name}.index.npz")


def scan(tar: Path) -> TarIndex:
    """Read a tar's headers.

    Neighbouring files that share a name up to the first dot of its last part are a sample, as in webdataset.
    A damaged or truncated tar gives the samples in front of the damage, and a problem.

    Raises:
        DataError: it cannot be read at all.
    """
    rows: list[tuple[int, int, int, int, int, int]] = []
    names: list[bytes] = []
    problems: list[BadSample] = []
    keys: set[str] = set()
    try:
        with tar.open("rb") as f:
            size = f.seek(0, os.SEEK_END)
            f.seek(0)
            for key, members in _samples(f, tar, size, problems):
                if key in keys:
                    problems.append(BadSample(key, "a second sample with this key"))
                    continue
                keys.add(key)
                image = next((m for e, m in members.items() if f".{e}" in IMAGE_EXTENSIONS), None)
                kind = next((i for i, e in enumerate(_CAPTION_ENDINGS) if e in members), -1)
                caption = members.get(_CAPTION_ENDINGS[kind]) if kind >= 0 else None
                rows.append(
                    (
                        *((image.offset_data, image.size) if image else (-1, 0)),
                        *((caption.offset_data, caption.size) if caption else (-1, 0)),
                        kind,
                        _label(f.fileno(), key, members.get("cls"), problems),
                    )
                )
                names.append(os.fsencode(image.name if image else key))
    except (OSError, tarfile.TarError) as e:
        hint = "; it must not be compressed" if tar.suffix != ".tar" or _is_packed(tar) else ""
        raise DataError(f"{tar}: not a tar: {e}{hint}") from e
    columns = np.array(rows, np.int64).reshape(-1, 6).T.copy()
    ends = np.cumsum([len(n) for n in names], dtype=np.int64)
    return TarIndex._make([*columns, ends, np.frombuffer(b"".join(names), np.uint8), tuple(problems)])


def _samples(
    file: Any, path: Path, size: int, problems: list[BadSample]
) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Key -> members by ending, of each sample whose bytes are all there."""
    key, members, whole = "", dict[str, tarfile.TarInfo](), True
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while True:
            try:
                member = tar.next()
            except tarfile.ReadError:  # the last file, which has been seen, is not whole
                if not key:
                    raise
                if whole:
                    problems.append(BadSample(f"(byte {size})", "the tar is cut off here"))
                break
            if member is None:
                problems += _end(file, tar.offset, size)
                break
            tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            folder, slash, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            if not member.isreg() or member.sparse is not None or not stem or not ending:
                continue
            if folder + slash + stem != key:
                if members and whole:
                    yield key, members
                key, members, whole = folder + slash + stem, {}, True
            if member.offset_data + member.size > size:
                problems.append(BadSample(member.name, "the tar is cut off inside this file"))
                whole = False
            elif ending.lower() in members:
                problems.append(BadSample(member.name, "a second file of this name in one sample"))
            else:
                members[ending.lower()] = member
    if members and whole:
        yield key, members


def _end(file: Any, offset: int, size: int) -> list[BadSample]:
    """The problem with where the headers end, if there is one."""
    file.seek(offset)
    block = file.read(512)
    if not block.strip(b"\0") and (block or offset == size):
        return []
    return [BadSample(f"(byte {offset} and after)", "the tar is damaged here; what follows cannot be read")]


def has_end_mark(tar: Path) -> bool:
    """Whether the tar ends as it should, and not at the end of some file because it was cut there."""
    with tar.open("rb") as f:
        f.seek(max(0, f.seek(0, os.SEEK_END) - 1024))
        return f.read() == bytes(1024)


def _label(descriptor: int, key: str, member: tarfile.TarInfo | None, problems: list[BadSample]) -> int:
    if member is None:
        return -1
    text = os.pread(descriptor, min(member.size, 32), member.offset_data).strip()
    if text.isdigit() and len(text) < 10:
        return int(text)
    problems.append(BadSample(f"{key}.cls", f"a label is a whole number, got {text!r}"))
    return -1


def _is_packed(tar: Path) -> bool:
    with tar.open("rb") as f:
        return f.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def save_index(tar: Path, index: TarIndex) -> Path:
    """Keep an index beside its tar; a reader never sees a part of it."""
    path = index_path(tar)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    arrays = index._asdict() | {
        "problems": np.frombuffer(json.dumps(index.problems).encode(), np.uint8),
        "version": np.array([_VERSION, tar.stat().st_size]),
    }
    with replacing(path, aside) as f:
        np.savez(f, **arrays)
    return path


@contextmanager
def replacing(path: Path, aside: Path) -> Iterator[IO[bytes]]:
    """A file that is written under another name and takes its place when it is whole."""
    try:
        with aside.open("wb") as f:
            yield f
        aside.replace(path)
    except OSError as e:
        e.filename = e.filename or path  # a full disk does not say where
        raise
    finally:
        aside.unlink(missing_ok=True)


def load_index(tar: Path) -> TarIndex | None:
    """The kept index of a tar; None if there is none, or it is older than the tar, of another or damaged."""
    path = index_path(tar)
    try:
        status = tar.stat()
        if path.stat().st_mtime_ns < status.st_mtime_ns:
            return None
        # np.load leaves a file that it cannot read open when it is given a path.
        with path.open("rb") as f, np.load(f, allow_pickle=False) as arrays:
            if arrays["version"].tolist() != [_VERSION, status.st_size]:
                return None
            problems = tuple(BadSample(*p) for p in json.loads(arrays["problems"].tobytes()))
            index = TarIndex._make([*(arrays[name] for name in TarIndex._fields[:-1]), problems])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    ends = (index.image + index.image_size, index.caption + index.caption_size)
    fits = all(len(a) == index.total for a in index[:7]) and all((e <= status.st_size).all() for e in ends)
    return index if fits and (not index.total or index.name_end[-1] == len(index.names)) else None


class Tars:
    """The samples of webdataset tars, by number. Files of a sample share a name up to its first dot.

    ``.cls`` holds a label's number, ``.txt``, ``.caption`` or ``.json`` (under title, caption or text) the
    captions, one a line. A file ``classes.txt`` beside the tars names the labels, one a line. Arrays hold
    the places of all samples: a million takes about 80 MB, and worker processes share them.

    Args:
        tars: the files; each with its index beside it (``vision-accel data index``), or it is scanned.
        need: what a sample must have besides an image; others are left out, and named in ``problems``.
        block: the first read of one of so many neighbours asks the system to read them all, for ``Order``'s
            blocks; 0 does not.

    Raises:
        DataError: a tar cannot be read, no sample is whole, or labels have no names.
    """

    def __init__(self, tars: Sequence[Path], need: Need = "image", block: int = 0) -> None:
        self.paths = [str(p) for p in tars]
        self.root = Path(os.path.commonpath([p.parent for p in tars]))
        self.problems: list[BadSample] = []
        self.block, self._asked = block, deque[int](maxlen=64)
        self._open: dict[int, int] = {}
        parts, names = [], []
        for number, tar in enumerate(tars):
            index = load_index(tar)
            if index is None:
                _log.info(
                    "%s: has no index that fits; reading its headers (see vision-accel data index)", tar
                )
                index = scan(tar)
            shown = self._shown(number)
            self.problems += [BadSample(f"{shown}/{b.file}", b.error) for b in index.problems]
            parts.append(self._whole(index, need, shown))
            names.append(index.names)
        self._counts = np.cumsum([0, *(len(p["image"]) for p in parts)])
        if not len(self):
            first = f", first {self.problems[0].file}: {self.problems[0].error}" if self.problems else ""
            raise DataError(f"{tars[0]}: no whole samples ({len(self.problems)} left out{first})")
        for part, shift in zip(parts, np.cumsum([0, *map(len, names)]), strict=False):
            part["name"] += shift
        self._names = np.concatenate(names)

        def column(name: str) -> NDArray[Any]:
            return np.concatenate([p.pop(name) for p in parts])  # frees the parts one by one

        self._name, self._name_size = column("name"), column("name_size")
        self._image, self._image_size = column("image"), column("image_size")
        self._caption, self._caption_size = column("caption"), column("caption_size")
        self._kind, self.labels = column("kind"), column("label")
        self.classes: tuple[str, ...] = ("",)
        self.has_labels = bool((self.labels >= 0).any())
        if need == "label":
            self.classes = _classes(tars, int(self.labels.max()) + 1)
        else:
            self.labels = np.zeros(len(self), np.int64)

    def _whole(self, index: TarIndex, need: Need, shown: str) -> dict[str, NDArray[Any]]:
        """The columns of the samples that have what is needed."""
        good = index.image >= 0
        why = {"label": index.label >= 0, "caption": index.caption >= 0}.get(need, good)
        start = index.name_end - np.diff(index.name_end, prepend=0)
        for i in np.flatnonzero(~(good & why)):
            name = os.fsdecode(index.names[start[i] : index.name_end[i]].tobytes())
            self.problems.append(BadSample(f"{shown}/{name}", f"no {need if good[i] else 'image'}"))
        keep = np.flatnonzero(good & why)
        small = np.uint32  # a member of 4 GiB is refused when it is read
        return {
            "image": index.image[keep],
            "image_size": np.minimum(index.image_size[keep], 2**32 - 1).astype(small),
            "caption": index.caption[keep],
            "caption_size": np.minimum(index.caption_size[keep], 2**32 - 1).astype(small),
            "kind": index.caption_kind[keep].astype(np.int8),
            "label": index.label[keep],
            "name": start[keep],
            "name_size": (index.name_end - start)[keep].astype(small),
        }

    def _shown(self, tar: int) -> str:
        return os.path.relpath(self.paths[tar], self.root)

    def __len__(self) -> int:
        return int(self._counts[-1])

    def tar(self, index: int) -> int:
        """Which of ``paths`` a sample is in."""
        return int(np.searchsorted(self._counts, index, "right")) - 1

    def name(self, index: int) -> str:
        """Tar and image, relative to the root."""
        start = self._name[index]
        member = self._names[start : start + self._name_size[index]].tobytes()
        return f"{self._shown(self.tar(index))}/{os.fsdecode(member)}"

    def read(self, index: int) -> bytes:
        """The encoded image."""
        tar = self.tar(index)
        return self._bytes(tar, int(self._image[index]), int(self._image_size[index]), index)

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions; () where the file has none."""
        if self._caption[index] < 0:
            return ()
        data = self._bytes(self.tar(index), int(self._caption[index]), int(self._caption_size[index]))
        text = data.decode("utf-8", errors="replace")
        if _CAPTION_ENDINGS[self._kind[index]] == "json":
            try:
                content = json.loads(text)
            except ValueError as e:
                raise SampleError(f"its .json is damaged: {e}") from e
            found = (content.get(k) for k in CAPTION_KEYS) if isinstance(content, dict) else ()
            text = next((str(value) for value in found if value), "")
        return lines(text)

    def _ask(self, tar: int, descriptor: int, index: int) -> None:
        """Have the system read a sample's neighbours of the same tar."""
        block = index // self.block
        if hasattr(os, "posix_fadvise") and block not in self._asked:
            self._asked.append(block)
            first = max(block * self.block, int(self._counts[tar]))
            last = min((block + 1) * self.block, int(self._counts[tar + 1])) - 1
            begin, end = int(self._image[first]), int(self._image[last] + self._image_size[last])
            os.posix_fadvise(descriptor, begin, end - begin, os.POSIX_FADV_WILLNEED)

    def _bytes(self, tar: int, offset: int, size: int, index: int = -1) -> bytes:
        check_size(size)
        descriptor = self._open.get(tar)
        kept = descriptor is not None
        if descriptor is None:
            descriptor = os.open(self.paths[tar], os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) < _MAX_OPEN:
                # Of two threads that open the same tar, one closes it again.
                kept = self._open.setdefault(tar, descriptor) == descriptor
        try:
            if self.block and index >= 0:
                self._ask(tar, descriptor, index)
            data = os.pread(descriptor, size, offset)
        finally:
            if not kept:
                os.close(descriptor)
        if len(data) != size:
            raise SampleError("the tar ends inside this file")
        return data

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)


def tars_in(paths: Sequence[Path]) -> list[Path]:
    """The tars among ``paths`` and directly in folders among them; [] if these hold no tars.

    Raises:
        DataError: some are tars and others are not.
    """
    found: list[Path] = []
    for path in paths:
        here = sorted(path.glob("*.tar")) if path.is_dir() else [path] if path.suffix == ".tar" else []
        if bool(here) != bool(found) and path != paths[0]:
            raise DataError(f"{path}: tars and other files; put :: between them")
        found += here
    return found


def _classes(tars: Sequence[Path], count: int) -> tuple[str, ...]:
    """The names of the labels, or their numbers."""
    found = {}
    for folder in dict.fromkeys(p.parent for p in tars):
        file = folder / "classes.txt"
        if file.exists():
            found[file] = lines(file.read_text(encoding="utf-8"))
    if not found:
        return tuple(map(str, range(count)))
    (first, names), *others = found.items()
    for file, other in others:
        if other != names:
            raise DataError(f"{file}: other classes than in {first}; join them with :: instead")
    if len(names) < count:
        raise DataError(f"{first}: {len(names)} names, but there is a label {count - 1}")
    return names
