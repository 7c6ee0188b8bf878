# SPDX-License-Identifier: Apache-2.0
"""RandAugment's operations and colour jitter in DALI. Import this only where DALI is installed.

What is done and how strongly comes from the plan of an image, as for Pillow; the arithmetic is DALI's, so
bytes differ a little: pixels that move are interpolated bilinearly, and hue turns in YIQ instead of HSV.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali import math as math_ops

from vision_accel.data.augment import AugmentConfig
from vision_accel.data.rand_augment import OPERATIONS, Operation, RandAugment

Node = Any  # DALI's DataNode

_MOVING = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
_IDENTITY = np.array([[1, 0, 0], [0, 1, 0]], np.float32)


def names(config: AugmentConfig) -> tuple[str, ...]:
    """What may happen to an image, the name "" for nothing first."""
    if config.rand_augment:
        jitter = {"Hue"} if config.color_jitter[3] else set()
        return (
            "",
            "Move",
            *(n for n in (*OPERATIONS, "Hue") if n not in _MOVING and (n in jitter or n != "Hue")),
        )
    strengths = zip(("Brightness", "Contrast", "Color", "Hue"), config.color_jitter, strict=True)
    found = {n for n, s in strengths if s} | ({"Color"} if config.grayscale else set())
    return ("", *sorted(found))


def code(operations: Sequence[Operation], stage: int, known: Sequence[str]) -> int:
    """Number of the operation of a stage in ``known``."""
    if stage >= len(operations):
        return 0
    name = operations[stage].name
    return known.index("Move" if name in _MOVING else "Color" if name == "Grayscale" else name)


def value(operations: Sequence[Operation], stage: int) -> float:
    """What the operation of a stage is called with."""
    if stage >= len(operations):
        return 0.0
    name, number, _ = operations[stage]
    if name == "Posterize":
        return 2.0 ** (8 - min(8, max(0, int(number))))
    return int(number * 255) * 360 / 255 if name == "Hue" else number


def matrix(operations: Sequence[Operation], stage: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """[2, 3], from places in the result to places in the image; the identity where nothing moves."""
    if stage >= len(operations) or operations[stage].name not in _MOVING:
        return _IDENTITY
    name, number, _ = operations[stage]
    h, w = size
    if name == "Rotate":
        c, s = math.cos(math.radians(number)), math.sin(math.radians(number))
        x, y = w / 2, h / 2
        return np.array([[c, -s, x - c * x + s * y], [s, c, y - s * x - c * y]], np.float32)
    m = _IDENTITY.copy()
    row, column, factor = {
        "ShearX": (0, 1, 1),
        "ShearY": (1, 0, 1),
        "TranslateX": (0, 2, w),
        "TranslateY": (1, 2, h),
    }[name]
    m[row, column] = number * factor
    return m


def vary(
    image: Node,
    which: Node,
    mtx: Node,
    amount: Node,
    fill: Sequence[int],
    known: Sequence[str],
    first: int = 0,
) -> Node:
    """The operation number ``which`` of ``known``, of which ``first`` is the first number."""
    if len(known) == 1:
        return _apply(known[0], image, mtx, amount, fill)
    half = len(known) // 2
    if which < first + half:
        varied = vary(image, which, mtx, amount, fill, known[:half], first)
    else:
        varied = vary(image, which, mtx, amount, fill, known[half:], first + half)
    return varied


def _apply(name: str, image: Node, mtx: Node, amount: Node, fill: Sequence[int]) -> Node:
    if name == "Move":
        return _move(image, mtx, fill)
    if name == "Hue":
        return fn.hue(image, hue=amount)
    return _BYTES[name](image, amount) if name else image


def _move(image: Node, mtx: Node, fill: Sequence[int]) -> Node:
    # DALI fills with one number for all channels: move the difference from the colour.
    colour = types.Constant(np.array(fill, np.float32).reshape(1, 1, 3), device=image.device)
    moved = fn.warp_affine(image - colour, matrix=mtx, fill_value=0.0, inverse_map=True)
    return fn.cast(moved + colour, dtype=types.UINT8)


def _cut(x: Node) -> Node:
    """Bytes, rounded down as Pillow does it, out-of-range values clipped."""
    return fn.cast(x - 0.4999, dtype=types.UINT8)


def _grey(image: Node) -> Node:
    return fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)


def _contrast(image: Node, amount: Node) -> Node:
    mean = math_ops.floor(fn.reductions.mean(_grey(image), axes=[0, 1], keep_dims=True) + 0.5)
    return _cut(image * amount + mean * (1.0 - amount))


def _sharpness(image: Node, amount: Node) -> Node:
    kernel = np.full((3, 3), 1 / 13, np.float32)
    kernel[1, 1] = 5 / 13
    smooth = fn.filter(image, types.Constant(kernel, device=image.device), dtype=types.FLOAT)
    return _cut(image * amount + smooth * (1.0 - amount))


def _auto_contrast(image: Node, _: Node) -> Node:
    low = fn.cast(fn.reductions.min(image, axes=[0, 1], keep_dims=True), dtype=types.FLOAT)
    high = fn.cast(fn.reductions.max(image, axes=[0, 1], keep_dims=True), dtype=types.FLOAT)
    flat = fn.cast(high == low, dtype=types.FLOAT)
    return _cut((image - low) * 255.0 / (high - low + flat) + low * flat)


def _solarize(image: Node, threshold: Node) -> Node:
    below = fn.cast(image < threshold, dtype=types.FLOAT)
    return fn.cast(image * below + (255.0 - image) * (1.0 - below), dtype=types.UINT8)


def _solarize_add(image: Node, amount: Node) -> Node:
    return fn.cast(image + amount * fn.cast(image < 128, dtype=types.FLOAT), dtype=types.UINT8)


_BYTES: dict[str, Callable[[Node, Node], Node]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": lambda x, _: fn.equalize(x),
    "Invert": lambda x, _: fn.cast(255.0 - x, dtype=types.UINT8),
    "Posterize": lambda x, step: fn.cast(math_ops.floor(x / step) * step, dtype=types.UINT8),
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": lambda x, a: _cut(x * a + _grey(x) * (1.0 - a)),
    "Contrast": _contrast,
    "Brightness": lambda x, a: _cut(x * a),
    "Sharpness": _sharpness,
}


def stages(config: AugmentConfig) -> int:
    """Most operations that a plan can have."""
    layers = RandAugment.parse(config.rand_augment).layers if config.rand_augment else 0
    return layers + sum(s != 0 for s in config.color_jitter) + (config.grayscale > 0)
