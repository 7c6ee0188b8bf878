# SPDX-License-Identifier: Apache-2.0
"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719) with timm's operations, magnitudes and string syntax."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_LEVELS = 10.0  # a magnitude of 10 is the full effect

# The filters that Pillow has for moving pixels.
_MOVING = {n: Image.Resampling[n.upper()] for n in ("nearest", "bilinear", "bicubic")}

Rgb = tuple[int, int, int]


class Geometry(NamedTuple):
    """How operations that move pixels treat them."""

    interpolation: Image.Resampling
    fill: Rgb


class Operation(NamedTuple):
    """One change of an image's bytes, drawn."""

    name: str  # one of OPERATIONS, "Hue" or "Grayscale"
    value: float = 0.0  # see argument()
    interpolation: Image.Resampling = Image.Resampling.BICUBIC  # where pixels move


Apply = Callable[[Image.Image, float, Geometry], Image.Image]


def _affine(image: Image.Image, matrix: tuple[float, ...], how: Geometry) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=how.interpolation, fillcolor=how.fill
    )


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    mask = 256 - 2 ** (8 - min(8, max(0, int(bits))))  # 0 bits: black; Pillow >= 13 refuses that
    return image.point([value & mask for value in range(256)] * 3)


def _turn_hue(image: Image.Image, turns: float) -> Image.Image:
    h, s, v = image.convert("HSV").split()
    shift = int(turns * 255) % 256
    turned = h.point([(value + shift) % 256 for value in range(256)])
    return Image.merge("HSV", (turned, s, v)).convert("RGB")


def _solarize_add(image: Image.Image, add: float) -> Image.Image:
    curve = [min(255, value + int(add)) if value < 128 else value for value in range(256)]
    return image.point(curve * 3)


_APPLY: dict[str, Apply] = {
    "AutoContrast": lambda x, _a, _: ImageOps.autocontrast(x),
    "Equalize": lambda x, _a, _: ImageOps.equalize(x),
    "Invert": lambda x, _a, _: ImageOps.invert(x),
    "Rotate": lambda x, a, how: x.rotate(a, resample=how.interpolation, fillcolor=how.fill),
    "Posterize": lambda x, a, _: _posterize(x, a),
    "Solarize": lambda x, a, _: ImageOps.solarize(x, int(a)),
    "SolarizeAdd": lambda x, a, _: _solarize_add(x, a),
    "Color": lambda x, a, _: ImageEnhance.Color(x).enhance(a),
    "Contrast": lambda x, a, _: ImageEnhance.Contrast(x).enhance(a),
    "Brightness": lambda x, a, _: ImageEnhance.Brightness(x).enhance(a),
    "Sharpness": lambda x, a, _: ImageEnhance.Sharpness(x).enhance(a),
    "ShearX": lambda x, a, how: _affine(x, (1, a, 0, 0, 1, 0), how),
    "ShearY": lambda x, a, how: _affine(x, (1, 0, 0, a, 1, 0), how),
    "TranslateX": lambda x, a, how: _affine(x, (1, 0, a * x.width, 0, 1, 0), how),
    "TranslateY": lambda x, a, how: _affine(x, (1, 0, 0, 0, 1, a * x.height), how),
}
OPERATIONS = tuple(_APPLY)
_APPLY["Hue"] = lambda x, turns, _: _turn_hue(x, turns)
_APPLY["Grayscale"] = lambda x, _a, _: x.convert("L").convert("RGB")


def argument(name: str, magnitude: float, sign: int, increasing: bool) -> float:
    """What an operation is called with: degrees, bits, a threshold, a blend factor or a share of the size.

    Args:
        name: one of ``OPERATIONS``.
        magnitude: not negative; 10 is the full effect.
        sign: 1 or -1, the direction.
        increasing: timm's ``inc1``: the effect of every operation grows with the magnitude.
    """
    level = magnitude / _LEVELS
    if name == "Rotate":
        return sign * (level * 30.0)
    if name == "Posterize":
        return 4 - int(level * 4) if increasing else int(level * 4)
    if name == "Solarize":
        threshold = min(256, int(level * 256))
        return 256 - threshold if increasing else threshold
    if name == "SolarizeAdd":
        return min(128, int(level * 110))
    if name in {"Color", "Contrast", "Brightness", "Sharpness"}:
        return max(0.1, 1.0 + sign * (level * 0.9)) if increasing else level * 1.8 + 0.1
    if name in {"ShearX", "ShearY"}:
        return sign * (level * 0.3)
    if name in {"TranslateX", "TranslateY"}:
        return sign * (level * 0.45)
    return 0.0


def apply(operation: Operation, image: Image.Image, fill: Rgb) -> Image.Image:
    """One operation on an RGB image; pixels that come from outside get the colour ``fill``."""
    return _APPLY[operation.name](image, operation.value, Geometry(operation.interpolation, fill))


@dataclass(frozen=True)
class RandAugment:
    """``layers`` operations drawn at random, with replacement, each done with a probability.

    Attributes:
        magnitude: strength; 10 is the full effect.
        layers: operations drawn for an image.
        prob: probability that a drawn operation is done.
        magnitude_std: standard deviation of the magnitude; infinity draws it from [0, magnitude].
        magnitude_max: upper bound of the magnitude.
        increasing: the effect of every operation grows with the magnitude.
    """

    magnitude: int = 10
    layers: int = 2
    prob: float = 0.5
    magnitude_std: float = 0.0
    magnitude_max: float = _LEVELS
    increasing: bool = False

    @classmethod
    def parse(cls, text: str) -> "RandAugment":
        """From timm's syntax, such as ``rand-m9-mstd0.5-inc1``.

        Sections: m magnitude, n layers, p probability, mstd and mmax of the magnitude, inc 0 or 1.

        Raises:
            ValueError: a section is unknown or not a number.
        """
        fields: dict[str, tuple[str, Callable[[str], float]]] = {
            "m": ("magnitude", int),
            "n": ("layers", int),
            "p": ("prob", float),
            "mstd": ("magnitude_std", float),
            "mmax": ("magnitude_max", int),
            "inc": ("increasing", lambda v: bool(int(v))),
        }
        first, *sections = text.split("-")
        if first != "rand":
            raise ValueError(f"rand_augment must look like 'rand-m9-mstd0.5-inc1', got {text!r}")
        values = {}
        for section in sections:
            match = re.fullmatch(r"([a-z]+?)(\d+(?:\.\d+)?|inf)", section)
            try:
                field, convert = fields[match[1] if match else ""]
                values[field] = convert(match[2] if match else "")
            except (KeyError, ValueError) as error:
                known = ", ".join(fields)
                raise ValueError(
                    f"rand_augment {text!r}: section {section!r} is not one of {known} and a number"
                ) from error
        if values.get("magnitude_std", 0) > 100:
            values["magnitude_std"] = math.inf
        return cls(**values)  # type: ignore[arg-type]

    def draw(self, rng: np.random.Generator, interpolation: str) -> Iterator[Operation]:
        """The operations for one image.

        Args:
            rng: decides everything.
            interpolation: of operations that move pixels: "nearest", "bilinear" or "bicubic"; "random"
                draws one of the latter two. Pillow has no others there: those become bicubic.
        """
        for _ in range(self.layers):
            name = OPERATIONS[int(rng.random() * len(OPERATIONS))]
            if rng.random() < self.prob:
                value = argument(name, self._draw(rng), _sign(rng), self.increasing)
                yield Operation(name, value, _resampling(interpolation, rng))

    def _draw(self, rng: np.random.Generator) -> float:
        magnitude = float(self.magnitude)
        if math.isinf(self.magnitude_std):
            magnitude *= rng.random()
        elif self.magnitude_std > 0:
            magnitude += self.magnitude_std * rng.standard_normal()
        return min(max(magnitude, 0.0), self.magnitude_max)


def _resampling(name: str, rng: np.random.Generator) -> Image.Resampling:
    if name == "random":
        name = "bilinear" if rng.random() < 0.5 else "bicubic"
    return _MOVING.get(name, Image.Resampling.BICUBIC)


def _sign(rng: np.random.Generator) -> int:
    return -1 if rng.random() < 0.5 else 1
