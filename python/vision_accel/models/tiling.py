# SPDX-License-Identifier: Apache-2.0
"""How large images go through an autoencoder in little memory: plans for a budget, and blended tiles."""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from vision_accel.models.rows import HALO, row_bytes
from vision_accel.models.striped import Plan

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_RESERVE = 16  # one part of so many of a budget is left to the allocator


def parse_memory(value: int | float | str) -> int:
    """Bytes of ``"2GB"``, ``"512MiB"`` or a number; K, M and G are powers of 1024.

    Raises:
        ValueError: it is no amount of memory.
    """
    text = str(value).strip()
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([KMG]?)(?:i?B)?", text, re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise ValueError(f"max_memory: must be an amount of memory such as '2GB', got {value!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def whole_bytes(widths: tuple[int, ...], pixels: int, element: int) -> int:
    """Peak of the activations of one image that is processed whole.

    The first block of a resolution of the decoder holds its input and what its norm and its first convolution
    make of it, or later its input, shortcut, second norm and result.

    Args:
        widths: channels at each resolution, from the finest.
        pixels: of the image.
        element: bytes of a value of the stream.
    """
    peaks = []
    for level, width in enumerate(widths):
        above = widths[min(level + 1, len(widths) - 1)]
        peaks.append(pixels // 4**level * max(2 * above + width, above + 3 * width, 4 * width))
    return max(peaks) * element


def least_bytes(widths: tuple[int, ...], height: int, width: int, element: int) -> int:
    """The least for one image in stripes of two rows; see ``whole_bytes``."""
    lowest = height * width // 4 ** (len(widths) - 1) * widths[-1] * 6 * element  # attention is not cut
    stored, working = _least(widths, height, width, element)
    return max(lowest, (stored + working) * _RESERVE // (_RESERVE - 1) + 1)


def _least(widths: tuple[int, ...], height: int, width: int, element: int) -> tuple[int, int]:
    """What must be stored at least, and what two rows take that are worked on."""
    stored = working = 0
    for level, n in enumerate(widths):
        h, w = height >> level, width >> level
        c = max(widths[max(0, level - 1) : level + 2])  # of what a block is made of: encoder or decoder
        rows = HALO * row_bytes(w, c + 2 * n, element, packed=False)
        stored = max(stored, h * row_bytes(w, n, element, packed=True) + rows)
        working = max(working, (2 + HALO) * w * (c + n + max(c, n)) * element)
    return stored, working


def plan_for(widths: tuple[int, ...], height: int, width: int, element: int, budget: int) -> Plan | None:
    """How to process an image within ``budget`` bytes of activations; None: whole.

    Raises:
        ValueError: the budget is too small; the message says what would do.
    """
    if whole_bytes(widths, height * width, element) <= budget:
        return None
    least = least_bytes(widths, height, width, element)
    if least > budget:
        raise ValueError(
            f"max_memory: {budget / 2**20:.0f} MB is too little for {height} x {width} pixels;"
            f" the least that works is {least / 2**20 + 1:.0f}MB"
        )
    usable = budget - budget // _RESERVE
    stored, working = _least(widths, height, width, element)
    working = max(working, min(usable // 8, usable - stored))
    return Plan(working, usable - working)


def blended(
    call: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: float, scale: float, channels: int
) -> Tensor:
    """Overlapping tiles, each processed alone, faded into each other: not exact, norms see one tile only.

    Args:
        call: [B, C, h, w] -> [B, channels, scale * h, scale * w].
        x: [B, C, h, w].
        tile: height and width of a tile of x.
        overlap: share of a tile that it has in common with the next.
        scale: of the result.
        channels: of the result.
    """
    step = max(1, round(tile * (1 - overlap)))
    height, width = x.shape[2:]
    out = x.new_zeros(x.shape[0], channels, round(height * scale), round(width * scale), dtype=torch.float32)
    weight = out.new_zeros(1, 1, *out.shape[2:])
    ramp = max(1.0, (tile - step) * scale)
    for top in _starts(height, tile, step):
        for left in _starts(width, tile, step):
            part = call(x[:, :, top : top + tile, left : left + tile]).float()
            y, z = round(top * scale), round(left * scale)
            h, w = part.shape[2:]
            fade = _fade(h, ramp, out)[:, None] * _fade(w, ramp, out)[None]
            out[:, :, y : y + h, z : z + w] += part * fade
            weight[:, :, y : y + h, z : z + w] += fade
    return (out / weight).to(x.dtype)


def _starts(size: int, tile: int, step: int) -> list[int]:
    """Where tiles begin; the last one ends with the image."""
    if size <= tile:
        return [0]
    return [*range(0, size - tile, step), size - tile]


def _fade(size: int, ramp: float, like: Tensor) -> Tensor:
    """Weights of a tile's rows: rising from its edges over ``ramp`` rows."""
    place = torch.arange(size, device=like.device, dtype=like.dtype) + 0.5
    return torch.minimum(place, size - place).div(ramp).clamp(max=1.0)
