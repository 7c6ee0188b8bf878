# SPDX-License-Identifier: Apache-2.0
"""Small pictures of coloured shapes with captions, drawn from a seed."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIZE = 32  # pixels
# Each has neighbours: what a model learns of a shape in one colour reaches the colours near it.
COLORS = {
    "red": (214, 40, 40), "orange": (245, 130, 30), "yellow": (240, 215, 40), "lime": (150, 225, 40),
    "green": (30, 140, 50), "teal": (30, 170, 150), "cyan": (40, 210, 225), "azure": (50, 140, 235),
    "blue": (40, 60, 210), "purple": (125, 50, 180), "pink": (250, 130, 190), "brown": (110, 65, 30),
    "black": (20, 20, 20),
}  # fmt: skip
SHAPES = ("circle", "triangle", "cross", "ring", "bar", "pillar")
SIZES = {"small": 0.75, "large": 1.0}
COUNTS = {"a": 1, "two": 2}
PLACES = {"on the left": (0.3, 0.5), "on the right": (0.7, 0.5), "at the top": (0.5, 0.3),
          "at the bottom": (0.5, 0.7), "in the middle": (0.5, 0.5)}  # fmt: skip
LABELS = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
# For each colour one shape that training never shows in it.
UNSEEN = [f"{color} {SHAPES[(i + 1) % len(SHAPES)]}" for i, color in enumerate(COLORS)]
SEEN = [label for label in LABELS if label not in UNSEEN]
TEMPLATES = ("a {} shape", "a small {} shape", "a large {} shape",
             "two {} shapes", "two small {} shapes", "two large {} shapes")  # fmt: skip


class Scene(NamedTuple):
    """What a picture shows."""

    label: str
    size: str
    number: str
    place: str

    def caption(self, size: bool = True, place: bool = True) -> str:
        """Such as "two small red circle shapes on the left"; size and place may stay unsaid."""
        noun = "shape" if self.number == "a" else "shapes"
        words = [self.number, self.size if size else "", self.label, noun, self.place if place else ""]
        return " ".join(w for w in words if w)


def random_scene(rng: np.random.Generator, labels: list[str]) -> Scene:
    """One scene with a label out of ``labels``."""

    def one(choices: list[str]) -> str:
        return choices[int(rng.integers(len(choices)))]

    return Scene(one(labels), one([*SIZES]), one([*COUNTS]), one([*PLACES]))


def draw(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Its picture on a coloured, slightly noisy ground; four times too large at first, for smooth edges.

    Grounds and tints vary from picture to picture: with a few exact colours a model learns every shape anew
    in each of them, and then none in a colour that it has not seen that shape in.
    """
    color, shape = scene.label.split()
    scale = 4 * SIZE
    ground = rng.uniform(80, 180) + rng.normal(0, 12, 3)
    image = Image.new("RGB", (scale, scale), _rgb(ground))
    pen = ImageDraw.Draw(image)
    count, radius = COUNTS[scene.number], scale * 0.3 * SIZES[scene.size]
    x, y = (scale * v + rng.normal(0, scale * 0.015) for v in PLACES[scene.place])
    tint = _rgb(np.array(COLORS[color]) + rng.normal(0, 14, 3))
    if count == 1:
        _draw_shape(pen, shape, x, y, radius, tint)
    else:  # side by side, or one above the other where that would leave the picture
        radius *= 0.75
        dx, dy = (0.0, 1.15 * radius) if PLACES[scene.place][0] != 0.5 else (1.15 * radius, 0.0)
        for side in (-1, 1):
            _draw_shape(pen, shape, x + side * dx, y + side * dy, radius, tint)
    small = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), np.float64)
    noisy = small + rng.normal(0, 6, small.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _rgb(color: np.ndarray) -> tuple[int, ...]:
    return tuple(int(v) for v in np.clip(color, 0, 255))


def _draw_shape(
    pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, color: tuple[int, ...]
) -> None:
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        pen.ellipse(box, color)
    elif shape == "ring":
        pen.ellipse(box, None, color, max(1, round(r * 0.4)))
    elif shape == "triangle":
        corners = [np.pi * (i / 1.5 - 0.5) for i in range(3)]
        pen.polygon([(x + 1.1 * r * np.cos(t), y + 1.1 * r * np.sin(t)) for t in corners], color)
    thin = 0.3 * r
    if shape in ("cross", "bar"):
        pen.rectangle((x - r, y - thin, x + r, y + thin), color)
    if shape in ("cross", "pillar"):
        pen.rectangle((x - thin, y - r, x + thin, y + r), color)


def write_scenes(root: Path, seed: int, train: int = 12000, test: int = 480) -> tuple[int, int]:
    """Write ``train.csv`` and ``test.csv`` with their pictures; the test shows unseen combinations only."""
    for part, count, labels, stream in (("train", train, SEEN, 0), ("test", test, UNSEEN, 1)):
        rng = np.random.default_rng([seed, stream])
        (root / part).mkdir(parents=True, exist_ok=True)
        with (root / f"{part}.csv").open("w", encoding="utf-8", newline="") as f:
            table = csv.writer(f)
            table.writerow(["filepath", "caption", "label"])
            for i in range(count):
                scene = random_scene(rng, labels)
                file = f"{part}/{i:05}.png"
                draw(scene, rng).save(root / file)
                says = rng.random(2) < 0.6
                table.writerow([file, scene.caption(bool(says[0]), bool(says[1])), scene.label])
    return train, test
