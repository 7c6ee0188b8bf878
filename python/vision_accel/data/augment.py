# SPDX-License-Identifier: Apache-2.0
"""Training augmentation of pixels: a pure function of the image and of a random generator. No torch.

The steps, their order and their distributions are timm's: random resized crop, flips, RandAugment, colour
jitter, normalisation, random erasing. Without the Pillow steps in the middle, crop, resize, flip and
normalisation are one pass of ``resample``.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from vision_accel.data.headers import plain_size
from vision_accel.data.images import UInt8, load_image
from vision_accel.data.preprocess import Float32, Preprocess
from vision_accel.data.rand_augment import Operation, RandAugment, Rgb, apply
from vision_accel.ops.resample import INTERPOLATIONS, normalization_table, resample

TrainTransform = Callable[[Any, np.random.Generator], Float32]

_ERASED_AREA, _ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # as in arXiv:1708.04896
_ATTEMPTS = 10  # at finding a random rectangle that fits


@dataclass
class AugmentConfig:
    """How training images are varied."""

    decode: Literal["exact", "fast"] = "exact"
    """fast: the builtin loader decodes JPEGs much larger than what is needed of them at 1/2, 1/4 or 1/8 of
    their size: quicker, but the pixels differ by some grey levels."""
    crop: Literal["random_resized", "random", "center"] = "random_resized"
    """random_resized: a rectangle of random area and aspect ratio, resized; random: resized as for
    evaluation, then a window at a random place; center: as for evaluation."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of the image's area in a random resized crop."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest width to height ratio of a random resized crop."""
    interpolation: str = ""
    """Of every resizing: the recipe's if empty; "random" draws bilinear or bicubic."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: float = 0.0
    """Probability of a vertical flip."""
    rand_augment: str = ""
    """RandAugment in timm's syntax, such as rand-m9-mstd0.5-inc1; off if empty."""
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Largest change of brightness, contrast, saturation (shares) and hue (at most 0.5 turns)."""
    color_jitter_prob: float = 1.0
    """Probability of the colour jitter."""
    grayscale: float = 0.0
    """Probability that colour is taken away."""
    erase: float = 0.0
    """Probability of random erasing."""
    erase_mode: Literal["const", "rand", "pixel"] = "const"
    """Erased pixels become 0, one normally distributed colour, or normally distributed each."""
    erase_count: int = 1
    """At most this many rectangles are erased."""


def train_transform(recipe: Preprocess, config: AugmentConfig) -> "Augment":
    """The function ``(image, rng) -> float32 [3, h, w]`` that prepares a training image.

    Args:
        recipe: size, interpolation and normalisation of the model's input.
        config: how to vary.

    Returns:
        A picklable function. ``image`` is anything ``load_image`` takes; all randomness comes from ``rng``.

    Raises:
        ValueError: an option is out of range.
    """
    return Augment(recipe, config)


class Erased(NamedTuple):
    """A rectangle of the result that is overwritten."""

    top: int
    left: int
    block: Float32  # [3, h, w], or [3, 1, 1] with the height and width beside it
    height: int
    width: int


class Plan(NamedTuple):
    """All that is done to one image, drawn; it depends on the image's size and not on its pixels."""

    box: tuple[int, int, int, int]
    """(top, left, height, width) of the part of the image that is resized."""
    resized: tuple[int, int]
    """(h, w) that it is resized to."""
    window: tuple[int, int, int, int]
    """(top, left, height, width) of what is kept of that."""
    corner: tuple[int, int]
    """Where the window lies in the result; (0, 0) unless there is a border."""
    interpolation: str
    flip: bool = False
    vertical_flip: bool = False
    operations: tuple[Operation, ...] = ()
    """On the resized and mirrored bytes, in order."""
    erased: tuple[Erased, ...] = ()


def evaluation_plan(recipe: Preprocess, height: int, width: int) -> Plan:
    """What the recipe does to an image of height x width."""
    resized = recipe.resized_size(height, width)
    window, corner = recipe.window(*resized)
    return Plan((0, 0, height, width), resized, window, corner, recipe.interpolation)


class Augment:
    """What ``train_transform`` returns, in two halves: ``plan`` draws, ``apply`` computes."""

    def __init__(self, recipe: Preprocess, config: AugmentConfig) -> None:
        _check(config)
        self.recipe, self.config = recipe, config
        self.table = normalization_table(recipe.mean, recipe.std, recipe.rescale)
        self.rand_augment = RandAugment.parse(config.rand_augment) if config.rand_augment else None
        # Pixels that RandAugment moves in from outside become 0, the mean.
        r, g, b = (min(255, max(0, round(m / recipe.rescale))) for m in recipe.mean)
        self.fill: Rgb = (r, g, b)

    def __call__(self, image: Any, rng: np.random.Generator) -> Float32:
        """Both halves."""
        if self.config.decode == "fast" and isinstance(image, bytes) and (size := plain_size(image)):
            return self._fast(image, self.plan(*size, rng), size)
        pixels = load_image(image, alpha=self.recipe.alpha)
        return self.apply(pixels, self.plan(pixels.shape[0], pixels.shape[1], rng))

    def _fast(self, image: bytes, plan: Plan, size: tuple[int, int]) -> Float32:
        """Carry out a plan for an image of this size on one that is decoded no larger than needed."""
        (top, left, h, w), (to_h, to_w) = plan.box, plan.resized
        # Twice what is needed, as Pillow's thumbnail does: less would show.
        need = math.ceil(2 * size[0] * to_h / h), math.ceil(2 * size[1] * to_w / w)
        pixels = load_image(image, alpha=self.recipe.alpha, draft=need)
        y, x = pixels.shape[0] / size[0], pixels.shape[1] / size[1]
        first, last = (int(top * y), int(left * x)), (math.ceil((top + h) * y), math.ceil((left + w) * x))
        box = (*first, last[0] - first[0], last[1] - first[1])
        return self.apply(pixels, plan._replace(box=box))

    def plan(self, height: int, width: int, rng: np.random.Generator) -> Plan:
        """Draw everything for an image of height x width."""
        c, size = self.config, self.recipe.size
        interpolation = c.interpolation or self.recipe.interpolation
        if interpolation == "random":
            interpolation = _either("bilinear", "bicubic", rng)
        if c.crop == "random_resized":
            box = random_rectangle(height, width, rng, c.scale, c.ratio)
            plan = Plan(box, size, (0, 0, *size), (0, 0), interpolation)
        else:
            plan = evaluation_plan(self.recipe, height, width)._replace(interpolation=interpolation)
            if c.crop == "random":
                resized, window = plan.resized, plan.window
                room = (resized[0] - window[2], resized[1] - window[3])
                plan = plan._replace(window=(_upto(room[0], rng), _upto(room[1], rng), *window[2:]))
        flip, vertical_flip = rng.random() < c.flip, rng.random() < c.vertical_flip
        operations = tuple(self._operations(rng))
        erased: tuple[Erased, ...] = ()
        if rng.random() < c.erase:
            erased = tuple(erased_rectangles(*size, rng, c.erase_mode, c.erase_count))
        return plan._replace(flip=flip, vertical_flip=vertical_flip, operations=operations, erased=erased)

    def apply(self, pixels: UInt8, plan: Plan, *, cut: bool = False) -> Float32:
        """Carry out a plan.

        Args:
            pixels: [h, w, 3], the image.
            plan: for an image of its size.
            cut: ``pixels`` is no more than ``plan.box`` of the image.
        """
        if not cut:
            top, left, h, w = plan.box
            pixels = pixels[top : top + h, left : left + w]
        how: dict[str, Any] = {"interpolation": plan.interpolation, "crop": plan.window, "threads": 1}
        if not plan.operations and plan.window[2:] == self.recipe.size:
            x = resample(pixels, plan.resized, flip=plan.flip, table=self.table, **how)
        else:
            canvas = np.full((*self.recipe.size, 3), self.recipe.fill, np.uint8)
            (y, x0), (h, w) = plan.corner, plan.window[2:]
            resample(pixels, plan.resized, out=canvas[y : y + h, x0 : x0 + w], **how)
            canvas = canvas[:, ::-1] if plan.flip else canvas
            if plan.operations:
                image = Image.fromarray(canvas)
                for operation in plan.operations:
                    image = apply(operation, image, self.fill)
                canvas = np.asarray(image)
            x = resample(canvas, self.recipe.size, table=self.table, threads=1)  # normalises only
        if plan.vertical_flip:
            x = np.ascontiguousarray(x[:, ::-1])
        erase(x, plan.erased)
        return x

    def _operations(self, rng: np.random.Generator) -> Iterator[Operation]:
        c = self.config
        if self.rand_augment is not None:
            yield from self.rand_augment.draw(rng, c.interpolation or self.recipe.interpolation)
        if any(c.color_jitter) and rng.random() < c.color_jitter_prob:
            yield from draw_color_jitter(rng, c.color_jitter)
        varied = c.rand_augment or any(c.color_jitter) or c.grayscale
        if varied and rng.random() < c.grayscale:
            yield Operation("Grayscale")


def random_rectangle(
    height: int, width: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """A random part of an image, as timm and torchvision draw it: (top, left, height, width).

    The area's share is uniform in ``scale``, the logarithm of width / height in that of ``ratio``. When ten
    draws do not fit, the largest centred rectangle whose ratio is allowed.
    """
    for _ in range(_ATTEMPTS):
        w, h = _sides(height * width * _uniform(scale, rng), ratio, rng)
        if 0 < w <= width and 0 < h <= height:
            return _upto(height - h, rng), _upto(width - w, rng), h, w
    w, h = width, height
    if width < ratio[0] * height:
        h = max(1, round(width / ratio[0]))
    elif width > ratio[1] * height:
        w = max(1, round(height * ratio[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def draw_color_jitter(
    rng: np.random.Generator, strength: tuple[float, float, float, float]
) -> Iterator[Operation]:
    """Changes of brightness, contrast, saturation and hue in random order, as torchvision's ColorJitter.

    Args:
        rng: decides the factors, uniform in [max(0, 1 - s), 1 + s], and the order.
        strength: s of brightness, contrast and saturation; the hue turns by at most its strength.
    """
    for i in np.argsort([rng.random() for _ in strength]):
        s = strength[i]
        if s != 0:
            limits = (-s, s) if i == 3 else (max(0.0, 1 - s), 1 + s)
            yield Operation(("Brightness", "Contrast", "Color", "Hue")[i], _uniform(limits, rng))


def erased_rectangles(
    height: int,
    width: int,
    rng: np.random.Generator,
    mode: Literal["const", "rand", "pixel"],
    count: int = 1,
) -> Iterator[Erased]:
    """1 to ``count`` random rectangles of a normalised image, which together cover 2% to 33% of it.

    Zhong et al. 2017, arXiv:1708.04896; modes as in timm.
    """
    number = 1 + _upto(count - 1, rng)
    for _ in range(number):
        for _ in range(_ATTEMPTS):
            area = height * width * _uniform(_ERASED_AREA, rng) / number
            h, w = _sides(area, _ERASED_ASPECT, rng)
            if w < width and h < height:
                top, left = _upto(height - h, rng), _upto(width - w, rng)
                shape = (3, h, w) if mode == "pixel" else (3, 1, 1)
                block = np.zeros(shape, np.float32)
                if mode != "const":
                    block = rng.standard_normal(shape, dtype=np.float32)
                yield Erased(top, left, block, h, w)
                break


def erase(x: Any, erased: Iterable[Erased]) -> None:
    """Overwrite rectangles of an image [3, h, w], an array or a tensor, in place."""
    for e in erased:
        block = e.block if isinstance(x, np.ndarray) else x.new_tensor(e.block)
        x[:, e.top : e.top + e.height, e.left : e.left + e.width] = block


def _sides(area: float, ratio: tuple[float, float], rng: np.random.Generator) -> tuple[int, int]:
    """Two sides of a rectangle of that area; the first over the second is log-uniform in ``ratio``."""
    r = math.exp(_uniform((math.log(ratio[0]), math.log(ratio[1])), rng))
    return round(math.sqrt(area * r)), round(math.sqrt(area / r))


# Only the generator's plainest outputs are used: numpy keeps those the same between versions.
def _uniform(limits: tuple[float, float], rng: np.random.Generator) -> float:
    return limits[0] + (limits[1] - limits[0]) * rng.random()


def _upto(n: int, rng: np.random.Generator) -> int:
    """A whole number in [0, n]."""
    return min(n, int(rng.random() * (n + 1)))


def _either(a: str, b: str, rng: np.random.Generator) -> str:
    return a if rng.random() < 0.5 else b


def _check(c: AugmentConfig) -> None:
    def wrong(field: str, wanted: str) -> ValueError:
        return ValueError(f"{field} must be {wanted}, got {getattr(c, field)!r}")

    for field in ("flip", "vertical_flip", "color_jitter_prob", "grayscale", "erase"):
        if not 0 <= getattr(c, field) <= 1:
            raise wrong(field, "a probability in [0, 1]")
    if not 0 < c.scale[0] <= c.scale[1] <= 1:
        raise wrong("scale", "(least, largest) in (0, 1]")
    if not 0 < c.ratio[0] <= c.ratio[1] < math.inf:
        raise wrong("ratio", "(least, largest), positive")
    if c.interpolation not in {"", "random", *INTERPOLATIONS}:
        raise wrong("interpolation", f"empty, random or one of {', '.join(INTERPOLATIONS)}")
    if len(c.color_jitter) != 4 or not all(s >= 0 for s in c.color_jitter) or c.color_jitter[3] > 0.5:
        raise wrong("color_jitter", "(brightness, contrast, saturation, hue), not negative, hue at most 0.5")
    for field, allowed in (
        ("crop", ("random_resized", "random", "center")),
        ("erase_mode", ("const", "rand", "pixel")),
    ):
        if getattr(c, field) not in allowed:
            raise wrong(field, f"one of {', '.join(allowed)}")
    if c.erase_count < 1:
        raise wrong("erase_count", "at least 1")
