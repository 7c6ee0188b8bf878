# SPDX-License-Identifier: Apache-2.0
"""Images as rows that come one after the other: kept in a ring of memory, or computed as they are asked for.

Whoever reads opens a *window*, whose ``rows(first, last)`` are asked for from the top to the bottom: a call
may begin where the one before began, or lower. A window holds the rows that it was asked for last.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from vision_accel import ops
from vision_accel.nn.resnet import of_stream, wide_dtype

Then = Literal["keep", "free", "move"]  # what becomes of stored rows that have been read
HALO = 4  # rows that a window holds at most beside those that are worked on
_ALIGNMENT = 64


class Window(Protocol):
    """A look at some rows of an image, further and further down."""

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) as [1, last - first, w, C], up to the next call."""


class Source(Protocol):
    """An image [1, h, w, C]: ``like`` is [0, h, w, C], ``stored`` the bytes that it takes in the ring."""

    like: Tensor
    stored: int

    def open(self, then: Then, rows: int) -> Window:
        """A window from the top, to work on up to so many rows at a time."""


class Ring:
    """Memory for rows that are freed about in the order in which they came."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.capacity = capacity // _ALIGNMENT * _ALIGNMENT
        self.memory = torch.empty(self.capacity, dtype=torch.uint8, device=device)
        self._sizes: OrderedDict[int, int] = OrderedDict()  # of what is in use, by its place, oldest first
        self._end = 0

    def take(self, size: int) -> int:
        """Where ``size`` bytes are free from now on."""
        size = aligned(size)
        oldest = next(iter(self._sizes), None)
        wrapped = oldest is not None and self._end <= oldest
        place = self._end if oldest is not None else 0
        limit = oldest if wrapped and oldest is not None else self.capacity
        if place + size > limit and not wrapped:
            place, limit = 0, oldest or 0
        if place + size > limit:
            raise RuntimeError(f"striped: {self.capacity} bytes for rows are too few; this is a bug")
        self._sizes[place] = size
        self._end = place + size
        return place

    def free(self, place: int) -> None:
        """Give back what :meth:`take` gave."""
        del self._sizes[place]


def aligned(size: int) -> int:
    """Bytes that the ring takes for ``size``."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def row_bytes(width: int, channels: int, element: int, packed: bool) -> int:
    """Bytes of a row in the ring; ``packed`` is for values of four bytes."""
    if packed and element == 4:
        return aligned(ops.block_float_bytes(width, channels))
    return aligned(width * channels * element)


class Whole:
    """An image in one tensor."""

    stored = 0

    def __init__(self, x: Tensor) -> None:
        self.x, self.like = x, x.new_empty(0, *x.shape[1:])  # no view, which would keep the tensor

    def open(self, then: Then, rows: int) -> "Whole":
        """The tensor is its own window."""
        return self

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last)."""
        return self.x[:, first:last]


class Stored:
    """An image in the ring, row by row; ``packed`` takes 20.5 bits a value (``ops.pack_block_float``)."""

    def __init__(self, ring: Ring, like: Tensor, packed: bool) -> None:
        self.ring, self.like = ring, like
        _, height, self._width, self._channels = like.shape
        self._packed = packed and like.dtype == torch.float32
        self._row = row_bytes(self._width, self._channels, like.element_size(), packed)
        self.stored = self._row * height
        self._places: list[int] = []

    def append(self, x: Tensor) -> None:
        """Store the next rows, [1, n, w, C]."""
        x = x.to(self.like.dtype)
        places = [self.ring.take(self._row) for _ in range(x.shape[1])]
        self._places += places
        if self._packed:
            ops.pack_block_float(x[0], self.ring.memory, places)
            return
        for row, memory in zip(x[0], self._memory(places), strict=True):
            memory.copy_(row)

    def read(self, first: int, last: int, out: Tensor, then: Then) -> None:
        """Rows [first, last) into ``out`` [1, last - first, w, C]."""
        places = self._places[first:last]
        if self._packed:
            ops.unpack_block_float(self.ring.memory, places, out[0])
        else:
            for row, memory in zip(out[0], self._memory(places), strict=True):
                row.copy_(memory)
        for i, place in enumerate(places if then != "keep" else (), first):
            if then == "move":
                to = self._places[i] = self.ring.take(self._row)
                self.ring.memory[to : to + self._row] = self.ring.memory[place : place + self._row]
            self.ring.free(place)

    def open(self, then: Then, rows: int) -> Window:
        """A window on rows that are read from the ring."""
        return Sliding(self.like, rows, lambda first, last, out: self.read(first, last, out, then))

    def _memory(self, places: list[int]) -> Iterator[Tensor]:
        size = self._width * self._channels * self.like.element_size()
        for place in places:
            row = self.ring.memory[place : place + size]
            yield row.view(self.like.dtype).view(self._width, self._channels)


class Convolved:
    """A 3 x 3 convolution of an image, computed when rows are asked for."""

    stored = 0

    def __init__(self, x: Tensor, conv: Any) -> None:
        self.x, self.conv = x, conv
        self.like = x.new_empty(0, *x.shape[1:3], conv.out_channels, dtype=wide_dtype(x.dtype))

    def open(self, then: Then, rows: int) -> Window:
        """A window on rows made of the image."""
        image, height = Whole(self.x), self.x.shape[1]

        def make(first: int, last: int, out: Tensor) -> None:
            conv3(self.conv, around(image, first, last, height), first, last, height, out=out)

        return Sliding(self.like, rows, make)


class Upsampled:
    """An upsampling convolution, computed when rows are asked for."""

    def __init__(self, low: Source, conv: Any) -> None:
        self.low, self.conv = low, conv
        self.stored = low.stored
        self.like = self.convolve(low.like)

    def open(self, then: Then, rows: int) -> Window:
        """A window on rows made of those of ``low``."""
        window, height = self.low.open(then, rows // 2), self.low.like.shape[1]

        def make(first: int, last: int, out: Tensor) -> None:
            first, last = first // 2, last // 2
            self.convolve(around(window, first, last, height), (first == 0, last == height), out)

        return Sliding(self.like, rows, make, step=2)

    def convolve(
        self, x: Tensor, borders: tuple[bool, bool] = (True, True), out: Tensor | None = None
    ) -> Tensor:
        """Rows of the image from those of the low resolution; see ``ops.upsample_conv2d``."""
        weight, bias = self.conv.weight, self.conv.bias
        return of_stream(ops.upsample_conv2d, x, weight, bias, borders=borders, out=out)


def around(window: Window, first: int, last: int, height: int) -> Tensor:
    """What a 3 x 3 convolution sees of an image so high for its rows [first, last)."""
    return window.rows(max(0, first - 1), min(height, last + 1))


def conv3(
    conv: Any, x: Tensor, first: int, last: int, height: int, *, out: Tensor, residual: Tensor | None = None
) -> None:
    """A 3 x 3 convolution's rows [first, last), of what is ``around`` them: zeros outside of the image."""
    padding = (int(first == 0), int(last == height), 1, 1)
    ops.conv2d(x, conv.weight, conv.bias, residual=residual, padding=padding, out=out)


class Sliding:
    """A window with a buffer: rows that it has are not made again.

    Args:
        like: [0, h, w, C], the image.
        rows: that are worked on at a time.
        make: ``make(first, last, out)`` writes the rows [first, last), from the top to the bottom.
        step: ``make`` is asked for multiples of so many rows.
    """

    def __init__(
        self, like: Tensor, rows: int, make: Callable[[int, int, Tensor], None], step: int = 1
    ) -> None:
        _, self._height, width, channels = like.shape
        self._buffer = like.new_empty(1, min(rows + HALO, self._height), width, channels)
        self._make, self._step = make, step
        self._first = self._last = 0

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last)."""
        if last > self._last:
            kept, gap = self._last - first, first - self._first
            if kept and gap:
                old = self._buffer[:, gap : gap + kept]
                self._buffer[:, :kept] = old.clone() if kept > gap else old
            end = min(self._height, -(-last // self._step) * self._step)
            self._make(self._last, end, self._buffer[:, kept : end - first])
            self._first, self._last = first, end
        return self._buffer[:, first - self._first : last - self._first]
