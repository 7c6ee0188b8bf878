# SPDX-License-Identifier: Apache-2.0
"""Memory in which worker processes hand over images."""

import itertools
import math
import mmap
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Slots:
    """Room for some batches of images, shared with the processes that are forked later.

    Batches are handed over without a copy, and the room of one is used again as soon as nobody holds it. In
    fresh shared memory, making and clearing the pages takes about as long as decoding the images.

    Args:
        count: number of batches.
        shape: [B, C, h, w] of the largest batch, float32.
    """

    def __init__(self, count: int, shape: Sequence[int]) -> None:
        # Without a name: nothing is left behind after a crash, and the size of /dev/shm does not matter.
        blocks = [mmap.mmap(-1, 4 * math.prod(shape)) for _ in range(count)]
        self._arrays = [np.frombuffer(b, np.float32).reshape(shape) for b in blocks]
        self._free = list(range(count))  # the last used first: it is in the cache
        self._key = next(_keys)
        _open[self._key] = self

    def take(self) -> int | None:
        """The number of a slot that nobody uses; None if there is none."""
        return self._free.pop() if self._free else None

    def room(self, slot: int) -> Tensor:
        """[B, C, h, w], what a slot holds."""
        return torch.from_numpy(self._arrays[slot])

    def images(self, slot: int, count: int) -> Tensor:
        """The first images of a slot, which is free again when the result and all views of it are gone."""
        array = self._arrays[slot][:count]
        weakref.finalize(array, self._free.append, slot).atexit = False
        return torch.from_numpy(array)

    def parcel(self, slot: int, count: int) -> "Parcel":
        """In a worker: what to send so that ``images`` arrive."""
        return Parcel((self._key, slot, count))


class Parcel(tuple[int, int, int]):
    """The images of a slot, on their way from a worker: unpickled, they are a tensor."""

    def __reduce__(self) -> Any:
        return _unpack, tuple(self)


_keys = itertools.count()
_open: "weakref.WeakValueDictionary[int, Slots]" = weakref.WeakValueDictionary()


def _unpack(key: int, slot: int, count: int) -> Tensor:
    return _open[key].images(slot, count)
