# SPDX-License-Identifier: Apache-2.0
"""Batches of decoded, augmented samples, read by worker processes."""

import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vision_accel.data.augment import Augment, TrainTransform
from vision_accel.data.images import ImageError
from vision_accel.data.preprocess import Preprocess, usable_cores
from vision_accel.data.sampler import Key, Stream, generator
from vision_accel.data.slots import Slots
from vision_accel.data.source import BadSample, DataError, SampleError, Source

SIZES = "_sizes"  # suffix: where bytes of different lengths are joined, the lengths
_REPLACEMENTS = 20  # tries before a run of unreadable images is an error

EvalTransform = Callable[[bytes], NDArray[np.float32]]

# What a model learns from a sample besides its image: (source, index, generator or None: no random choice).
Target = Callable[[Source, int, np.random.Generator | None], dict[str, Tensor]]


def label(source: Source, index: int, _rng: np.random.Generator | None = None) -> dict[str, Tensor]:
    """The target of a classifier."""
    return {"label": torch.tensor(source.labels[index])}


class Batch(NamedTuple):
    """One micro-batch."""

    tensors: dict[str, Tensor]  # every value is [B, ...]
    bad: list[BadSample]  # files met on the way that could not be read
    error: str = ""  # why there are no tensors
    indices: tuple[int, ...] = ()  # which samples these are, [B]


class Sample(NamedTuple):
    """One sample, before it becomes part of a batch."""

    tensors: dict[str, Tensor] | None
    bad: list[BadSample]
    number: int = -1  # in its source


class TrainImages(Dataset[Sample]):
    """Augmented images and their targets; a sample is a pure function of (seed, key).

    An unreadable image is reported and replaced by another one, which (seed, key) choose as well.

    Args:
        source: the images.
        transform: (encoded image, random generator) -> float32 [3, h, w]; an ImageError says why it cannot.
        seed: not negative.
        target: what is learned from an image.
    """

    def __init__(self, source: Source, transform: TrainTransform, seed: int, target: Target = label) -> None:
        self.source, self.transform, self.seed, self.target = source, transform, seed, target

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Sample:
        def augmented(data: bytes) -> NDArray[np.float32]:
            return self.transform(data, generator(self.seed, Stream.AUGMENT, *key))

        bad: list[BadSample] = []
        index = key.image
        for attempt in range(_REPLACEMENTS):
            tensors = _read(
                self.source, index, bad, augmented, self.target, generator(self.seed, Stream.TARGET, *key)
            )
            if tensors is not None:
                return Sample(tensors, bad, index)
            index = replacement(self.seed, key, attempt, len(self))
        return Sample(None, bad)


def replacement(seed: int, key: Key, attempt: int, size: int) -> int:
    """The sample that stands in for one of ``size`` that cannot be read, at the given attempt (from 0)."""
    return int(generator(seed, Stream.REPLACE, *key, attempt).integers(size))


class EvalImages(Dataset[Sample]):
    """Images and targets for evaluation; an unreadable image is left out and reported.

    Args:
        source: the images.
        transform: encoded image -> float32 [3, h, w]; an ImageError says why it cannot.
        target: what an image is compared with.
    """

    def __init__(self, source: Source, transform: EvalTransform, target: Target = label) -> None:
        self.source, self.transform, self.target = source, transform, target

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        bad: list[BadSample] = []
        transform = self.transform
        if isinstance(transform, Preprocess):  # the loader's workers are what runs at the same time
            transform = partial(transform, threads=1)
        return Sample(_read(self.source, index, bad, transform, self.target, None), bad, index)


def _read(
    source: Source,
    index: int,
    bad: list[BadSample],
    transform: EvalTransform,
    target: Target,
    rng: np.random.Generator | None,
) -> dict[str, Tensor] | None:
    try:
        data = source.read(index)
        return {"image": torch.as_tensor(transform(data)), **target(source, index, rng)}
    except (ImageError, SampleError, OSError) as e:
        bad.append(bad_sample(source, index, e))
        return None


def bad_sample(source: Source, index: int, error: Exception) -> BadSample:
    """What is reported of a sample that could not be read."""
    why = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
    return BadSample(source.name(index), re.sub(r"^<\d+ bytes>: ", "", why))


def collate_train(samples: list[Sample]) -> Batch:
    """Stack samples; one that found no replacement makes the batch an error."""
    bad = [b for s in samples for b in s.bad]
    if any(s.tensors is None for s in samples):
        first = "; ".join(f"{b.file}: {b.error}" for b in bad[:3])
        return Batch({}, bad, f"{_REPLACEMENTS} images in a row could not be read, first {first}")
    return Batch(_stack(samples), bad, indices=tuple(s.number for s in samples))


def collate_eval(samples: list[Sample]) -> Batch:
    """Stack the samples that could be read."""
    bad = [b for s in samples for b in s.bad]
    samples = [s for s in samples if s.tensors is not None]
    return Batch(_stack(samples), bad, indices=tuple(s.number for s in samples))


def _stack(samples: list[Sample]) -> dict[str, Tensor]:
    rows = [s.tensors for s in samples if s.tensors is not None]
    stacked = {}
    for name in rows[0] if rows else ():
        column = [r[name] for r in rows]
        if column[0].dtype == torch.uint8 and column[0].ndim == 1:  # encoded images
            stacked[name + SIZES] = torch.tensor([len(c) for c in column])
            stacked[name] = torch.cat(column)
        else:
            stacked[name] = _joined(column)
    return stacked


def _joined(rows: list[Tensor]) -> Tensor:
    """Rows as one tensor; those that lie one behind the other in a slot are not copied."""
    first = rows[0]
    if any(
        row.storage_offset() != i * first.numel()
        or row.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
        or row.stride() != first.stride()
        for i, row in enumerate(rows)
    ):
        return torch.stack(rows)
    return first.as_strided((len(rows), *first.shape), (first.numel(), *first.stride()))


class _Work(NamedTuple):
    """A batch to prepare."""

    keys: list[Any]
    slot: int | None  # where its images go


class _Works:
    """Each batch of keys with a free slot, chosen when a worker gets it."""

    def __init__(self, batches: Iterable[list[Any]], slots: Slots | None) -> None:
        self.batches, self.slots = batches, slots

    def __iter__(self) -> Iterator[_Work]:
        for keys in self.batches:
            yield _Work(keys, self.slots.take() if self.slots is not None else None)


class _Batches(Dataset[tuple[Batch, Any]]):
    """Whole batches of samples, and apart from them their images if these are in a slot."""

    def __init__(
        self, samples: Dataset[Sample], collate: Callable[[list[Sample]], Batch], slots: Slots | None
    ) -> None:
        self.samples, self.collate, self.slots = samples, collate, slots

    def __getitem__(self, work: _Work) -> tuple[Batch, Any]:
        if self.slots is None or work.slot is None:
            return self.collate([self.samples[key] for key in work.keys]), None
        room, samples, count = self.slots.room(work.slot), list[Sample](), 0
        for key in work.keys:
            sample = self.samples[key]
            if sample.tensors is not None:
                room[count] = sample.tensors["image"]
                sample.tensors["image"] = room[count]
                count += 1
            samples.append(sample)
        batch = self.collate(samples)
        images = batch.tensors.get("image")
        if images is not None and images.data_ptr() == room.data_ptr():
            del batch.tensors["image"]
        else:  # no image could be read, or a copy has been made
            count = 0
        return batch, self.slots.parcel(work.slot, count)


def _image_size(samples: Dataset[Sample]) -> tuple[int, int] | None:
    """(h, w) of all images, if that is known."""
    transform = getattr(samples, "transform", None)
    if isinstance(transform, Augment):
        return transform.recipe.size
    return transform.size if isinstance(transform, Preprocess) else None


class Loader:
    """Iterates over batches that worker processes prepare; use it as a context manager.

    Args:
        samples: a data set; spawn needs it to be picklable.
        batches: the keys of each batch, in order.
        collate: makes one batch of the samples.
        batch_size: of the largest batch.
        workers: number of processes; 0 reads in this process.
        start_method: how workers start: "fork" is quick, "spawn" and "forkserver" start clean.
        timeout: seconds to wait for a batch before the run stops with an error; 0 waits for ever.
        pin_memory: put batches into page-locked memory, for copies to a GPU.

    Raises:
        DataError: (while iterating) a worker died or hung, or images cannot be replaced.
    """

    def __init__(
        self,
        samples: Dataset[Sample],
        batches: Iterable[list[Any]],
        collate: Callable[[list[Sample]], Batch],
        *,
        batch_size: int,
        workers: int = 0,
        start_method: str = "fork",
        timeout: float = 0.0,
        pin_memory: bool = False,
    ) -> None:
        slots, size = None, _image_size(samples)
        if workers and start_method == "fork" and size is not None:
            # Two batches for each worker, as torch has it, the one in use and the one before it.
            slots = Slots(2 * workers + 2, (batch_size, 3, *size))
        before = multiprocessing.active_children()
        with _signals_kept():
            self._batches = iter(
                DataLoader(
                    _Batches(samples, collate, slots),
                    batch_size=None,
                    sampler=_Works(batches, slots),
                    collate_fn=_unchanged,
                    num_workers=workers,
                    multiprocessing_context=start_method if workers else None,
                    timeout=timeout if workers else 0,
                    worker_init_fn=_ignore_signals,
                    pin_memory=pin_memory,
                    generator=torch.Generator(),  # leaves torch's own generator alone
                )
            )
        self.processes = [p for p in multiprocessing.active_children() if p not in before]

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        try:
            batch, images = next(self._batches)
        except RuntimeError as e:
            if clear := worker_error(e):
                raise clear from e
            raise
        if batch.error:
            raise DataError(batch.error)
        if images is not None and len(images):
            batch.tensors["image"] = images
        return batch

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the workers; one that hangs is killed."""
        stop = getattr(self._batches, "_shutdown_workers", None)
        if stop is not None:
            stop()
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Undo torch's handler of SIGCHLD, which raises wherever the main thread is when a worker dies.

    Inside a callback of fork(), such as logging's, that leaves a lock taken for ever. Without the handler,
    waiting for a batch finds the dead worker, within 5 seconds.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if signal.getsignal(signal.SIGCHLD) is not before:
        signal.signal(signal.SIGCHLD, before)


def default_workers() -> int:
    """Worker processes that suit this machine: one per core that this process may use, at most 8."""
    share = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes that torchrun started here
    return max(1, min(8, usable_cores() // share))


def worker_error(error: BaseException) -> DataError | None:
    """What to tell the user if torch says that a worker died, which it may say at any moment; else None."""
    text = (str(error).splitlines() or [""])[0]
    if not isinstance(error, RuntimeError) or "DataLoader" not in text:
        return None
    if "timed out" in text:
        return DataError(f"the data loading workers hang ({text})")
    if "killed" in text or "exited" in text:
        return DataError(
            f"a data loading worker died ({text.rstrip('. ')}); if memory ran out, use fewer workers"
        )
    return None


def _unchanged(batch: Any) -> Any:
    return batch


def _ignore_signals(_worker: int) -> None:
    # Ctrl-C and job managers signal all processes: only the training loop answers, the workers go on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
