# SPDX-License-Identifier: Apache-2.0
"""Which image comes when: everything random is a pure function of the seed and of where we are.

Nothing here has a state, so a run continues from any step exactly, for any number of worker processes.
"""

from collections.abc import Iterator
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Stream(IntEnum):
    """Independent random streams of one seed."""

    ORDER = 0
    AUGMENT = 1
    REPLACE = 2
    MIX = 3
    MODEL = 4
    TARGET = 5


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
    """The endless sequence of training samples: a new permutation of ``size`` images in every epoch.

    Position p is a pure function of (seed, p). An epoch follows the last without a gap, so a batch may hold
    the end of one and the start of the next, and no image is ever left out.

    Args:
        size: number of images.
        seed: not negative.
        repeats: repeated augmentation (Hoffer et al. 2019, arXiv:1901.09335): every image comes this many
            times in a row, each time augmented differently.
    """

    def __init__(self, size: int, seed: int, repeats: int = 1) -> None:
        self.size, self.seed, self.repeats = size, seed, repeats

    def __getitem__(self, position: int) -> Key:
        image, draw = divmod(position, self.repeats)
        epoch, offset = divmod(image, self.size)
        return Key(epoch, int(_permutation(self.size, self.seed, epoch)[offset]), draw)


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    # Sorting raw bits, because numpy keeps these the same between versions and shuffle() is free to change.
    return np.argsort(_bits(seed, Stream.ORDER, epoch).random_raw(size), kind="stable")


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
