# SPDX-License-Identifier: Apache-2.0
"""How large images go through an autoencoder in little memory: plans for a budget, and blended tiles."""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from vision_accel.models.striped import Plan

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_ROWS = (256, 128, 64, 32, 16, 8, 4)  # of a stripe at full resolution, largest first


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


def stored_bytes(widths: tuple[int, ...], height: int, width: int, element: int) -> int:
    """What is stored of an image in stripes at least: the stream of a level beside that of the finer one."""
    pixels = height * width
    stored = [pixels * widths[0], pixels // 4 ** (len(widths) - 1) * widths[-1] * 5]  # the lowest is whole
    for level in range(1, len(widths)):
        area = pixels // 4**level
        stored.append(area * widths[level] + 4 * area * widths[level - 1])
    return max(stored) * element


def striped_bytes(widths: tuple[int, ...], height: int, width: int, rows: int, element: int) -> int:
    """Peak of the activations of one image in stripes of ``rows`` rows; see ``whole_bytes``."""
    above = widths[min(1, len(widths) - 1)]
    stripe = (rows + 8) * width * (3 * above + 5 * widths[0]) * element
    # An eighth is what allocators lose between stripes.
    return (stored_bytes(widths, height, width, element) + stripe) * 9 // 8


def plan_for(widths: tuple[int, ...], height: int, width: int, element: int, budget: int) -> Plan | None:
    """How to process an image within ``budget`` bytes of activations; None: whole.

    Raises:
        ValueError: the budget is too small; the message says what would do.
    """
    if whole_bytes(widths, height * width, element) <= budget:
        return None
    for rows in _ROWS:
        spare = budget - striped_bytes(widths, height, width, rows, element)
        if spare >= 0:
            return Plan(rows * width, stored_bytes(widths, height, width, element) + spare)
    least = striped_bytes(widths, height, width, _ROWS[-1], element)
    raise ValueError(
        f"max_memory: {budget / 2**20:.0f} MB is too little for {height} x {width} pixels;"
        f" the least that works is {least / 2**20 + 1:.0f}MB"
    )


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
