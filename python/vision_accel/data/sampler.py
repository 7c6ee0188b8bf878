# SPDX-License-Identifier: Apache-2.0
"""Which image comes when: everything random is a pure function of the seed and of where we are.

Nothing here has a state, so a run continues from any step exactly, for any number of worker processes.
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_BLOCKS = 32  # runs of neighbours whose samples are shuffled together


class Stream(IntEnum):
    """Independent random streams of one seed."""

    ORDER = 0
    AUGMENT = 1
    REPLACE = 2
    MIX = 3
    MODEL = 4
    TARGET = 5
    PICK = 6


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """The random generator of one place in the run, such as ``(epoch, index)`` or ``(step, micro-batch)``."""
    return np.random.Generator(_bits(seed, stream, *key))


def _bits(seed: int, stream: Stream, *key: int) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(int(stream), *key)))


class Key(NamedTuple):
    """One use of one image."""

    epoch: int
    image: int
    draw: int = 0  # which repetition, with repeated augmentation


class Order:
    """The endless sequence of training samples: a new permutation of all samples in every epoch.

    Position p is a pure function of (seed, p). An epoch follows the last without a gap, so a batch may hold
    the end of one and the start of the next, and no sample is ever left out.

    Args:
        size: number of samples; of each source if there are several.
        seed: not negative.
        repeats: repeated augmentation (Hoffer et al. 2019, arXiv:1901.09335): every sample comes this many
            times in a row, each time augmented differently.
        weights: the share of each source, in any unit. An epoch still has as many samples as there are; each
            source goes through permutations of its own, over epochs without a gap.
        replace: draw every sample anew, so that one may come twice in an epoch.
        block: only whole runs of so many neighbours are shuffled, and then the samples of 32 such runs
            together, so that disks read forward. 0 shuffles all samples with each other.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        seed: int,
        repeats: int = 1,
        *,
        weights: Sequence[float] = (),
        replace: bool = False,
        block: int = 0,
    ) -> None:
        self.sizes = (size,) if isinstance(size, int) else tuple(size)
        self.size, self.seed, self.repeats = sum(self.sizes), seed, repeats
        self.weights, self.replace, self.block = tuple(map(float, weights)), replace, block
        if self.weights and (
            len(self.weights) != len(self.sizes) or min(self.weights) < 0 or not any(weights)
        ):
            raise ValueError(f"one weight for each of {len(self.sizes)} sources, got {list(weights)}")

    def __getitem__(self, position: int) -> Key:
        image, draw = divmod(position, self.repeats)
        epoch, offset = divmod(image, self.size)
        if not self.weights and not self.replace:
            order = _permutation(self.size, self.block, self.seed, Stream.ORDER, epoch)
        else:
            order = _mixture(self.sizes, self.weights, self.replace, self.block, self.seed, epoch)
            draw += offset * self.repeats  # the same sample may come again in this epoch
        return Key(epoch, int(order[offset]), draw)


@lru_cache(maxsize=2)
def _mixture(
    sizes: tuple[int, ...], weights: tuple[float, ...], replace: bool, block: int, seed: int, epoch: int
) -> NDArray[np.int64]:
    """The samples of one epoch where sources have weights, or where samples are drawn anew."""
    total = sum(sizes)
    exact = np.array(weights or sizes, np.float64)
    exact *= total / exact.sum()
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    turns = np.repeat(np.arange(len(sizes)), counts)[_permutation(total, 0, seed, Stream.ORDER, epoch)]
    out = np.empty(total, np.int64)
    start = 0
    for source, (size, count) in enumerate(zip(sizes, counts.tolist(), strict=True)):
        if replace:
            own = _bits(seed, Stream.PICK, source, epoch).random_raw(count) % np.uint64(max(size, 1))
        else:
            first, last = epoch * count, (epoch + 1) * count
            passes = range(first // size, -(-last // size))
            orders = [_permutation(size, block, seed, Stream.PICK, source, e) for e in passes]
            own = np.concatenate([*orders, np.empty(0, np.int64)])[first - passes.start * size :][:count]
        out[turns == source] = start + own.astype(np.int64)
        start += size
    return out


@lru_cache(maxsize=2)
def _permutation(size: int, block: int, seed: int, stream: Stream, *key: int) -> NDArray[np.int64]:
    # Sorting raw bits, because numpy keeps these the same between versions and shuffle() is free to change.
    bits = _bits(seed, stream, *key)
    if block <= 0:
        return np.argsort(bits.random_raw(size), kind="stable")
    blocks = np.argsort(bits.random_raw(-(-size // block)), kind="stable")
    order = (blocks[:, None] * block + np.arange(block)).ravel()
    order = order[order < size]
    return order[np.lexsort((bits.random_raw(size), np.arange(size) // (_BLOCKS * block)))]


class BatchPlan:
    """The micro-batches that one process takes part in, from ``start`` to ``stop`` (steps of the optimiser).

    A step takes ``batch_size`` consecutive positions of the order and cuts them into ``accumulate * world``
    micro-batches; process ``rank`` takes every ``world``-th. The same images therefore meet in a step
    however many processes and micro-batches share it.
    """

    def __init__(
        self,
        order: Order,
        batch_size: int,
        start: int,
        stop: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % (accumulate * world):
            raise ValueError(
                f"batch size {batch_size} cannot be cut into {accumulate} micro-batches on {world} processes"
            )
        self.order, self.batch_size, self.start, self.stop = order, batch_size, start, stop
        self.accumulate, self.rank, self.world = accumulate, rank, world

    def __len__(self) -> int:
        return max(0, self.stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        micro = self.batch_size // (self.accumulate * self.world)
        for step in range(self.start, self.stop):
            for m in range(self.accumulate):
                first = step * self.batch_size + (m * self.world + self.rank) * micro
                yield [self.order[p] for p in range(first, first + micro)]
