# SPDX-License-Identifier: Apache-2.0
"""The autoencoder in stripes of rows, exactly: what is stored is one stream, not every activation.

A norm needs the mean and variance of the whole image before any pixel behind it is known. So each residual
block goes over the image twice: once for the statistics behind its first convolution, and once for its
output. Rows go from one layer to the next as they come, with the neighbours that convolutions see, so that
there are no seams: the result is that of the whole image up to rounding.

Rows between two passes are stored in a ring (see ``models.rows``), where those of a result take the place of
those that it was made of. A resolution of which no two streams fit is stored in 20.5 bits a value: the
result then errs about 2.5 times as much as float32 does by itself. What there is no room for at all is
computed again for each pass: what comes out of an upsampling convolution, and rows of the first convolution
of a block.
Resolutions that fit into the budget as they are are not cut.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vision_accel import ops
from vision_accel.models.rows import (
    HALO,
    Convolved,
    Ring,
    Sliding,
    Source,
    Stored,
    Upsampled,
    Whole,
    Window,
    around,
    conv3,
    row_bytes,
)
from vision_accel.nn import is_plain
from vision_accel.nn.resnet import of_stream, wide_dtype
from vision_accel.ops._layout import autocast_dtype, statistics_dtype

Statistics = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Plan:
    """How to cut: bytes for the rows that are worked on, and for those that are stored."""

    working: int
    stored: int

    def rows(self, like: Tensor, channels: int) -> int:
        """How many rows are worked on at a time, where so many channels of each are held."""
        return max(2, (self.working // (like.shape[2] * channels * like.element_size()) - HALO) // 2 * 2)


def can_cut(part: nn.Module) -> bool:
    """Whether every module is one of ours that nobody watches: stripes call ops, not all of the modules."""
    ours = ("vision_accel.", "torch.nn.modules.container")
    return all(is_plain(m, type(m)) and type(m).__module__.startswith(ours) for m in part.modules())


def decode(decoder: Any, z: Tensor, plan: Plan) -> Tensor:
    """[1, h, w, latent_channels] -> [1, factor * h, factor * w, out_channels], as the decoder gives it."""
    x = decoder.mid_block(decoder.conv_in(z, out_dtype=wide_dtype(z.dtype)))
    image = _Image(Whole(x), decoder.conv_norm_out.num_groups, plan)
    del x  # the image frees it
    for i, block in enumerate(decoder.up_blocks):
        for resnet in block.resnets:
            image.resnet(resnet)
        for upsampler in block.upsamplers:
            image.upsample(upsampler.conv, decoder.up_blocks[i + 1].resnets[0].conv1.out_channels)
    return image.finish(decoder.conv_norm_out, decoder.conv_out)


def encode(encoder: Any, x: Tensor, plan: Plan) -> Tensor:
    """[1, h, w, in_channels] -> moments [1, h / factor, w / factor, 2 * latent_channels]."""
    image = _Image(Convolved(x, encoder.conv_in), encoder.conv_norm_out.num_groups, plan)
    for i, block in enumerate(encoder.down_blocks):
        for resnet in block.resnets:
            image.resnet(resnet)
        for downsampler in block.downsamplers:
            image.downsample(downsampler.conv, encoder.down_blocks[i + 1].resnets[0].conv1.out_channels)
    y = encoder.mid_block(image.tensor())
    return encoder.conv_out(encoder.conv_norm_out(y), out_dtype=y.dtype)


class _Image:
    """An image on its way through the layers: where its rows are, and the statistics of the norm behind."""

    def __init__(self, source: Source, groups: int, plan: Plan) -> None:
        self.source, self.groups, self.plan = source, groups, plan
        self.norm: Statistics | None = None
        self.ring: Ring | None = None

    def tensor(self) -> Tensor:
        """All of it; the ring is given up."""
        height = self.source.like.shape[1]
        x = self.source.open("free", height).rows(0, height)
        self.source, self.ring = Whole(x), None
        return x

    def resnet(self, block: Any) -> None:
        """A residual block, whole if there is room."""
        like, c, n = self.source.like, block.conv1.in_channels, block.conv1.out_channels
        is_small = _bytes(like, c) <= self.plan.working  # out of the ring, it is twice in memory for a moment
        is_taken_out = isinstance(self.source, Whole) or (isinstance(self.source, Stored) and is_small)
        if is_taken_out and self._fits(like, c, n):
            self.source, self.norm = Whole(block(self.tensor())), None
        else:
            self._resnet(block)

    def _resnet(self, block: Any) -> None:
        source, like = self.source, self.source.like
        c, n = block.conv1.in_channels, block.conv1.out_channels
        height, width = like.shape[1:3]
        rows = self.plan.rows(like, c + n + max(c, n))
        first_norm = self.norm or self._statistics(rows)
        room = self._room(like, c + 2 * n)
        packed = _bytes(like, 2 * n) > room
        size = _bytes(like, n, packed)
        of_result = like.new_empty(0, height, width, n)
        normalised = like.new_empty((rows + 2) * width * max(c, n), dtype=block.norm1.weight.dtype)

        def normalise(norm: Any, x: Tensor, statistics: Statistics) -> Tensor:
            return norm(x, statistics, normalised[: x.numel()].view(x.shape))

        def hidden(window: Window, first: int, last: int, out: Tensor) -> None:
            """conv1's rows [first, last)."""
            x = normalise(block.norm1, around(window, first, last, height), first_norm)
            conv3(block.conv1, x, first, last, height, out=out)

        # Once for the statistics in the middle. What the second pass needs of the input is stored beside the
        # first rows of conv1's result: the input itself, or its shortcut if that is smaller.
        narrows = n < c and isinstance(source, Stored) and 2 * size <= room
        kept = height if narrows else max(0, (room - source.stored) * height // size)
        if kept < height:  # up to where a stripe of the second pass ends
            stripes = max(0, kept - 1) // rows
            kept = stripes * rows + 1 if stripes else 0
        first_result, shortcut = self._store(of_result, packed), self._store(of_result, packed)
        window = source.open("free" if narrows else "move" if kept else "keep", rows)
        buffer, merger = like.new_empty(1, rows, width, n), _Merger(self.groups)
        for first, last in _stripes(height, rows):
            h = buffer[:, : last - first]
            hidden(window, first, last, h)
            merger.add(h)
            if narrows:
                shortcut.append(of_stream(block.conv_shortcut, window.rows(first, last)))
            if first < kept:
                first_result.append(h[:, : kept - first])
        second_norm = merger.result(like)
        del buffer, h

        # Once for the result. What is not needed again is overwritten.
        window = (shortcut if narrows else source).open("free", rows)

        def make(first: int, last: int, out: Tensor) -> None:
            if last <= kept:
                first_result.read(first, last, out, "free")
            else:
                hidden(window, first, last, out)

        middle = Sliding(of_result, rows, make)
        result, merger = self._store(of_result, packed), _Merger(self.groups)
        for first, last in _stripes(height, rows):
            x = normalise(block.norm2, around(middle, first, last, height), second_norm)
            y = window.rows(first, min(height, last + 1))[:, : last - first]
            if block.conv_shortcut is not None and not narrows:
                y = of_stream(block.conv_shortcut, y)
            conv3(block.conv2, x, first, last, height, out=y, residual=y)
            merger.add(y)
            result.append(y)
        self.source, self.norm = result, merger.result(like)

    def upsample(self, conv: Any, channels: int) -> None:
        """Twice the size, for a block of so many channels: computed now if there is room for the result."""
        like = Upsampled(self.source, conv).like
        c = like.shape[3]
        if isinstance(self.source, Whole):
            if self._fits(like, c, channels):
                self.source, self.norm = Whole(Upsampled(self.source, conv).convolve(self.source.x)), None
                return
            low = self._store(self.source.like, False)
            low.append(self.source.x)
            self.source = low
        self.source, self.norm = Upsampled(self.source, conv), None
        room = self._room(like, 2 * c)
        packed = _bytes(like, max(c, 2 * channels)) > room  # the block's two streams, or its input
        if _bytes(like, c, packed) > room:
            return
        rows = self.plan.rows(like, 2 * c)
        window = self.source.open("free", rows)
        self._resize(like, packed, rows, window.rows)

    def downsample(self, conv: Any, channels: int) -> None:
        """Half the size, for a block of so many channels."""

        def convolve(x: Tensor, below: int) -> Tensor:
            pads = (0, below, 0, 1)
            return of_stream(ops.conv2d, x, conv.weight, conv.bias, stride=2, padding=pads)

        large = self.source.like
        like = convolve(large, 1)
        height = like.shape[1]
        packed = _bytes(like, max(like.shape[3], 2 * channels)) > self._room(like, 2 * channels)
        rows = self.plan.rows(large, 2 * large.shape[3])
        window = self.source.open("free", rows)

        def make(first: int, last: int) -> Tensor:
            return convolve(window.rows(2 * first, min(2 * height, 2 * last + 1)), int(last == height))

        self._resize(like, packed, rows // 2, make)

    def finish(self, norm: Any, conv: Any) -> Tensor:
        """The last norm and convolution."""
        like = self.source.like
        _, height, width, c = like.shape
        rows = self.plan.rows(like, 3 * c)
        statistics = self.norm or self._statistics(rows)
        window = self.source.open("free", rows)
        dtype = autocast_dtype(conv.weight)
        y = like.new_empty(1, height, width, conv.out_channels, dtype=dtype)
        for first, last in _stripes(height, rows):
            x = norm(around(window, first, last, height), statistics)
            conv3(conv, x, first, last, height, out=y[:, first:last])
        return y

    def _fits(self, like: Tensor, c: int, n: int) -> bool:
        """Whether there is room for all that a block from c to n channels makes of the whole image."""
        return _bytes(like, max(2 * c + n, c + 3 * n)) <= self.plan.working + self.plan.stored

    def _statistics(self, rows: int) -> Statistics:
        window, merger = self.source.open("keep", rows), _Merger(self.groups)
        for first, last in _stripes(self.source.like.shape[1], rows):
            merger.add(window.rows(first, last))
        return merger.result(self.source.like)

    def _resize(self, like: Tensor, packed: bool, rows: int, make: Callable[[int, int], Tensor]) -> None:
        made, merger = self._store(like, packed), _Merger(self.groups)
        for first, last in _stripes(like.shape[1], rows):
            x = make(first, last)
            made.append(x)
            merger.add(x)
        self.source, self.norm = made, merger.result(like)

    def _store(self, like: Tensor, packed: bool) -> Stored:
        if self.ring is None:
            self.ring = Ring(self.plan.stored, like.device)
        return Stored(self.ring, like, packed)

    def _room(self, like: Tensor, channels: int) -> int:
        """Bytes for whole images, where rows of so many channels come and go."""
        return self.plan.stored - HALO * row_bytes(like.shape[2], channels, like.element_size(), False)


def _bytes(like: Tensor, channels: int, packed: bool = False) -> int:
    """An image of so many channels in the ring."""
    return like.shape[1] * row_bytes(like.shape[2], channels, like.element_size(), packed)


def _stripes(height: int, rows: int) -> Iterator[tuple[int, int]]:
    for first in range(0, height, rows):
        yield first, min(height, first + rows)


class _Merger:
    """Mean and variance of stripes, merged in order (Chan et al. 1979) in float64."""

    def __init__(self, groups: int) -> None:
        self.groups, self.count = groups, 0.0
        self.mean = self.squares = torch.zeros(1, groups, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        mean, variance = ops.group_norm_statistics(x, self.groups)
        count = float(x.shape[1] * x.shape[2])
        shift = mean.double().cpu() - self.mean
        total = self.count + count
        self.squares = (
            self.squares + variance.double().cpu() * count + shift**2 * (self.count * count / total)
        )
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def result(self, like: Tensor) -> Statistics:
        mean, variance = self.mean, self.squares / self.count
        dtype = statistics_dtype(like)
        return mean.to(like.device, dtype), variance.to(like.device, dtype)
