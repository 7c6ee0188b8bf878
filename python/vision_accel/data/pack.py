# SPDX-License-Identifier: Apache-2.0
"""Write webdataset tars."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vision_accel.data.loader import bad_sample
from vision_accel.data.sampler import Order
from vision_accel.data.source import BadSample, DataError, SampleError, Source
from vision_accel.data.tars import index_path, load_index, replacing, save_index, scan

Files = list[tuple[str, bytes]]  # of one sample: name and content


@dataclass
class Packed:
    """What ``pack`` has written."""

    shards: list[Path] = field(default_factory=list)
    samples: int = 0
    kept: int = 0
    """Shards of an earlier, interrupted call that were kept."""
    bad: list[BadSample] = field(default_factory=list)
    """Samples that could not be read, and were left out."""


def pack(
    source: Source,
    folder: Path,
    *,
    max_count: int = 10_000,
    max_bytes: int = 1_000_000_000,
    shuffle: bool = True,
    seed: int = 0,
    prefix: str = "",
    progress: Callable[[int], object] = lambda samples: None,
) -> Packed:
    """Write a source as tars of samples ``00000012.jpg``, ``.cls`` or ``.txt``, and ``.json`` with its name.

    Images are copied, not encoded anew. Each tar appears under its name only when it is whole and on the
    disk, with its index beside it; names of labels go into ``classes.txt``. The same source and options give
    the same bytes, so a call that was interrupted goes on behind the tars that it finds.

    Args:
        source: what to write.
        folder: where to; created if need be.
        max_count: samples in a tar at most.
        max_bytes: of a tar at most, unless one sample alone is larger.
        shuffle: False keeps the order of the source.
        seed: of the shuffling.
        prefix: of the tars' names, before their numbers.
        progress: called with the number of samples that a step has done.

    Raises:
        DataError: the folder holds other tars.
        OSError: it cannot be written; whole tars stay, and nothing half-written.
    """
    if max_count < 1 or max_bytes < 1:
        raise ValueError(f"max_count and max_bytes must be positive, got {max_count} and {max_bytes}")
    folder.mkdir(parents=True, exist_ok=True)
    result = Packed()
    order = Order(len(source), seed)
    plan = {
        "source": str(source.root),
        "samples": len(source),
        "max_count": max_count,
        "max_bytes": max_bytes,
        "seed": seed if shuffle else None,
        "prefix": prefix,
    }
    _claim(folder, plan)
    if source.classes != ("",):
        _write(folder / "classes.txt", "".join(f"{name}\n" for name in source.classes).encode())

    def files() -> Iterator[Files]:
        """The files of each sample that can be read, behind the tars that are there."""
        for position in range(start, len(source)):
            index = order[position].image if shuffle else position
            progress(1)
            try:
                yield list(_files(source, index, position))
            except (OSError, SampleError) as e:
                result.bad.append(bad_sample(source, index, e))

    start = 0
    while True:
        path = folder / f"{prefix}{len(result.shards):06}.tar"
        index = load_index(path)
        if index is None:
            break
        last = bytes(index.names[index.name_end[-2] if index.total > 1 else 0 :])
        result.shards.append(path)
        result.samples += index.total
        progress(int(last.split(b".")[0]) + 1 - start)
        start = int(last.split(b".")[0]) + 1
    result.kept = len(result.shards)

    stream = files()
    item = next(stream, None)
    while item is not None:
        path = folder / f"{prefix}{len(result.shards):06}.tar"
        count, item = _write_tar(path, item, stream, max_count, max_bytes)
        save_index(path, scan(path))
        result.shards.append(path)
        result.samples += count
    return result


def _write_tar(
    path: Path, item: Files | None, rest: Iterator[Files], max_count: int, max_bytes: int
) -> tuple[int, Files | None]:
    """Write a tar of ``item`` and what follows; how many samples are in it, and the first that is not."""
    aside = path.with_name(f"{path.name}.tmp")
    count = size = 0
    with replacing(path, aside) as f:
        with tarfile.open(fileobj=f, mode="w", format=tarfile.PAX_FORMAT) as tar:
            while item is not None and count < max_count:
                more = sum(512 + -(-len(data) // 512) * 512 for _, data in item)
                if count and size + more + 1024 > max_bytes:
                    break
                for name, data in item:
                    info = tarfile.TarInfo(name)
                    info.size, info.mode = len(data), 0o444
                    tar.addfile(info, io.BytesIO(data))
                count, size = count + 1, size + more
                item = next(rest, None)
        f.flush()
        os.fsync(f.fileno())
    return count, item


def _files(source: Source, index: int, position: int) -> Iterator[tuple[str, bytes]]:
    name, key = source.name(index), f"{position:08}"
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122  (called for every file)
    yield f"{key}{ending}", source.read(index)
    about = {"file": name}
    if source.classes != ("",):
        label = int(source.labels[index])
        about["class"] = source.classes[label]
        yield f"{key}.cls", str(label).encode()
    captions = source.captions(index)
    if captions:
        yield f"{key}.txt", "\n".join(captions).encode()
    yield f"{key}.json", json.dumps(about, ensure_ascii=False).encode()


def _claim(folder: Path, plan: dict[str, object]) -> None:
    """Only tars of the same plan may lie in the folder: it is noted beside them."""
    note = folder / "pack.json"
    tars = sorted(folder.glob("*.tar"))
    if tars:
        try:
            same = json.loads(note.read_text(encoding="utf-8")) == plan
        except (OSError, ValueError):
            same = False
        if not same:
            raise DataError(
                f"{folder}: holds tars of another source or other options, such as {tars[0].name}"
            )
        for tar in tars:  # without its index, which is written after it, it is written anew
            if load_index(tar) is None:
                tar.unlink()
                index_path(tar).unlink(missing_ok=True)
    _write(note, (json.dumps(plan, indent=2) + "\n").encode())


def _write(path: Path, data: bytes) -> None:
    aside = path.with_name(f"{path.name}.tmp")
    try:
        aside.write_bytes(data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
