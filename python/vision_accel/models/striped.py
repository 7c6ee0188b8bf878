# SPDX-License-Identifier: Apache-2.0
"""The autoencoder in stripes of rows, exactly: what is stored is one stream, not every activation.

A norm needs the mean and variance of the whole image before any pixel behind it is known. So each residual
block goes over the image twice: once for the statistics behind its first convolution, and once for its
output. Each stripe takes as many rows of its neighbours as the convolutions see. There are no seams: the
result is that of the whole image up to the rounding of the statistics.

The result of a block takes the place of its input. What the budget has no room for is computed again for each
pass: what comes out of an upsampling convolution, and rows of the first convolution of a block. Resolutions
that fit into the budget are not cut at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vision_accel import ops
from vision_accel.nn import is_plain
from vision_accel.nn.resnet import of_stream, wide_dtype
from vision_accel.ops._layout import statistics_dtype

Statistics = tuple[Tensor, Tensor]
_HALO = 2  # rows that a residual block sees above and below


@dataclass(frozen=True)
class Plan:
    """How to cut: ``pixels`` of a stripe, and the ``budget`` in bytes for what is stored."""

    pixels: int
    budget: int = 0

    def stripes(self, height: int, width: int) -> Iterator[tuple[int, int]]:
        """First and last row of each stripe."""
        rows = max(1, self.pixels // width)
        for first in range(0, height, rows):
            yield first, min(height, first + rows)


class Source(Protocol):
    """Where rows of a stream come from: ``x`` is what is in memory of it."""

    x: Tensor
    height: int
    width: int
    channels: int

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) as [1, last - first, w, C]."""


class Stored:
    """A stream in memory."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        _, self.height, self.width, self.channels = x.shape

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last)."""
        return self.x[:, first:last]


class Convolved:
    """A 3 x 3 convolution of an image that is computed when rows are asked for."""

    def __init__(self, x: Tensor, conv: Any) -> None:
        self.x, self.conv = x, conv
        _, self.height, self.width, _ = x.shape
        self.channels = conv.out_channels

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last)."""
        return _conv3(self.conv, _with_halo(Stored(self.x), first, last, 1), first, last, self.height)


class Upsampled:
    """An upsampling convolution that is computed when rows are asked for."""

    def __init__(self, x: Tensor, conv: Any) -> None:
        self.x, self.conv = x, conv
        self.height, self.width, self.channels = 2 * x.shape[1], 2 * x.shape[2], conv.out_channels

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last)."""
        low, high = max(0, (first - 1) // 2), min(self.height // 2, last // 2 + 1)
        y = of_stream(self.conv, self.x[:, low:high])
        return y[:, first - 2 * low : last - 2 * low]


def can_cut(part: nn.Module) -> bool:
    """Whether every module is one of ours that nobody watches: stripes call ops, not all of the modules."""
    ours = ("vision_accel.", "torch.nn.modules.container")
    return all(is_plain(m, type(m)) and type(m).__module__.startswith(ours) for m in part.modules())


def _with_halo(source: Source, first: int, last: int, halo: int) -> Tensor:
    return source.rows(max(0, first - halo), min(source.height, last + halo))


def _conv3(
    conv: Any, x: Tensor, first: int, last: int, height: int, residual: Tensor | None = None
) -> Tensor:
    """A 3 x 3 convolution for the rows [first, last): zeros outside of the image, neighbours inside."""
    padding = (int(first == 0), int(last == height), 1, 1)
    return ops.conv2d(
        x,
        conv.weight,
        conv.bias,
        residual=residual,
        padding=padding,
        out_dtype=None if residual is not None else wide_dtype(x.dtype),
    )


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


def _statistics(source: Source, groups: int, plan: Plan) -> Statistics:
    merger = _Merger(groups)
    for first, last in plan.stripes(source.height, source.width):
        rows = source.rows(first, last)
        merger.add(rows)
    return merger.result(rows)


def _resnet(
    block: Any, source: Source, before: Statistics | None, plan: Plan
) -> tuple[Stored, Statistics | None]:
    """The block's result, and the statistics of the norm behind it."""
    if isinstance(source, Stored) and _whole(block, source) <= plan.budget:
        return Stored(block(source.x)), None
    height, width = source.height, source.width
    groups, n = block.norm1.num_groups, block.conv1.out_channels
    first_norm = before or _statistics(source, groups, plan)

    def hidden(x: Tensor, top: int, bottom: int, first: int, last: int) -> Tensor:
        """conv1's rows [first, last) from rows [top, bottom) of the input."""
        x = x[:, max(0, first - 1) - top : min(height, last + 1) - top]
        return _conv3(block.conv1, block.norm1(x, first_norm), first, last, height)

    # Once for the statistics in the middle.
    like = source.rows(0, 1)
    size = height * width * n * like.element_size()
    out_is_new = not (isinstance(source, Stored) and n == source.channels)
    room = plan.budget - _bytes(source.x) - size * out_is_new
    kept = like.new_empty(1, max(0, min(height, room * height // size)), width, n)  # its first rows
    merger = _Merger(groups)
    for first, last in plan.stripes(height, width):
        top, bottom = max(0, first - 1), min(height, last + 1)
        h = hidden(source.rows(top, bottom), top, bottom, first, last)
        merger.add(h)
        end = min(last, kept.shape[1])
        kept[:, first:end] = h[:, : max(0, end - first)]
    second_norm = merger.result(like)

    # Once for the result, which takes the place of a stored input of the same width.
    y = like.new_empty(1, height, width, n) if out_is_new else source.x
    after = _Merger(groups)
    above = like[:, :0]  # the last rows of the input above the stripe, which the result has overwritten
    for first, last in plan.stripes(height, width):
        top, bottom = max(0, first - _HALO), min(height, last + _HALO)
        if out_is_new:
            x = source.rows(top, bottom)
        else:
            x = torch.cat([above, source.rows(first, bottom)], 1)
            above = x[:, max(0, last - _HALO) - top : last - top].clone()
        low, high = max(0, first - 1), min(height, last + 1)
        h = kept[:, low:high] if high <= kept.shape[1] else hidden(x, top, bottom, low, high)
        middle = x[:, first - top : last - top]
        residual = middle if block.conv_shortcut is None else of_stream(block.conv_shortcut, middle)
        h = block.norm2(h.contiguous(), second_norm)
        rows = _conv3(block.conv2, h, first, last, height, residual.contiguous())
        y[:, first:last] = rows
        after.add(rows)
    return Stored(y), after.result(like)


# Results are written into one image: small tensors that stay would pin what the allocator has between them.


def _finish(part: Any, stream: Stored, before: Statistics | None, plan: Plan) -> Tensor:
    """The last norm and convolution."""
    norm = before or _statistics(stream, part.conv_norm_out.num_groups, plan)
    conv = part.conv_out
    y = stream.x.new_empty(1, stream.height, stream.width, conv.out_channels, dtype=conv.weight.dtype)
    for first, last in plan.stripes(stream.height, stream.width):
        x = part.conv_norm_out(_with_halo(stream, first, last, 1), norm)
        padding = (int(first == 0), int(last == stream.height), 1, 1)
        y[:, first:last] = ops.conv2d(x, conv.weight, conv.bias, padding=padding)
    return y


def decode(decoder: Any, z: Tensor, plan: Plan) -> Tensor:
    """[1, h, w, latent_channels] -> [1, factor * h, factor * w, out_channels], as the decoder gives it."""
    source: Source = Stored(decoder.mid_block(decoder.conv_in(z, out_dtype=wide_dtype(z.dtype))))
    norm: Statistics | None = None
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            source, norm = _resnet(resnet, source, norm, plan)
        for upsampler in block.upsamplers:
            assert isinstance(source, Stored)
            source, norm = _upsample(upsampler.conv, source, plan), None
    assert isinstance(source, Stored)
    return _finish(decoder, source, norm, plan)


def encode(encoder: Any, x: Tensor, plan: Plan) -> Tensor:
    """[1, h, w, in_channels] -> moments [1, h / factor, w / factor, 2 * latent_channels]."""
    source: Source = Convolved(x, encoder.conv_in)
    norm: Statistics | None = None
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            source, norm = _resnet(resnet, source, norm, plan)
        for downsampler in block.downsamplers:
            assert isinstance(source, Stored)
            source, norm = Stored(_downsample(downsampler.conv, source, plan)), None
    assert isinstance(source, Stored)
    y = encoder.mid_block(source.x)
    return encoder.conv_out(encoder.conv_norm_out(y), out_dtype=y.dtype)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _whole(block: Any, source: Stored) -> int:
    """Peak of a block that is not cut: its input, what its norms and convolutions make, and its result."""
    c, n = block.conv1.in_channels, block.conv1.out_channels
    return source.height * source.width * max(2 * c + n, c + 3 * n) * source.x.element_size()


def _upsample(conv: Any, stream: Stored, plan: Plan) -> Source:
    """Made now if the block behind it still has room for its result, of up to as many channels."""
    size = 4 * stream.height * stream.width * conv.out_channels * stream.x.element_size()
    return Stored(of_stream(conv, stream.x)) if 2 * size <= plan.budget else Upsampled(stream.x, conv)


def _downsample(conv: Any, stream: Stored, plan: Plan) -> Tensor:
    half = stream.height // 2
    y = stream.x.new_empty(1, half, stream.width // 2, conv.out_channels)
    for first, last in plan.stripes(half, stream.width):
        x = stream.x[:, 2 * first : 2 * last + 1]
        padding = (0, int(last == half), 0, 1)
        y[:, first:last] = of_stream(ops.conv2d, x, conv.weight, conv.bias, stride=2, padding=padding)
    return y
