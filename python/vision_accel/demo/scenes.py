# SPDX-License-Identifier: Apache-2.0
"""Small pictures of coloured shapes with captions, drawn from a seed."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIZE = 32  # pixels
COLORS = {
    "red": (214, 40, 40), "green": (40, 160, 60), "blue": (45, 80, 220), "yellow": (240, 205, 40),
    "purple": (140, 60, 190), "orange": (245, 130, 30), "black": (25, 25, 25), "white": (250, 250, 250),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
SIZES = {"small": 0.65, "large": 1.0}
COUNTS = {"one": 1, "two": 2}
PLACES = {"on the left": (0.3, 0.5), "on the right": (0.7, 0.5), "at the top": (0.5, 0.3),
          "at the bottom": (0.5, 0.7), "in the middle": (0.5, 0.5)}  # fmt: skip
LABELS = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
# Every fifth combination of colour and shape is never seen in training.
UNSEEN = [name for i, name in enumerate(LABELS) if (i // len(SHAPES) + i % len(SHAPES)) % 5 == 0]
TEMPLATES = (
    "one small {} in the middle",
    "one large {} in the middle",
    "one small {} on the left",
    "one large {} at the top",
)


class Scene(NamedTuple):
    """What a picture shows."""

    label: str
    size: str
    number: str
    place: str

    @property
    def caption(self) -> str:
        """Such as "two small red circles on the left"."""
        plural = "" if self.number == "one" else "es" if self.label.endswith("cross") else "s"
        return f"{self.number} {self.size} {self.label}{plural} {self.place}"


def random_scene(rng: np.random.Generator, labels: list[str]) -> Scene:
    """One scene with a label out of ``labels``."""

    def one(choices: list[str]) -> str:
        return choices[int(rng.integers(len(choices)))]

    return Scene(one(labels), one([*SIZES]), one([*COUNTS]), one([*PLACES]))


def draw(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Its picture on a grey, slightly noisy ground; four times too large at first, for smooth edges."""
    color, shape = scene.label.split()
    scale = 4 * SIZE
    ground = int(rng.integers(95, 165))
    image = Image.new("RGB", (scale, scale), (ground, ground, ground))
    pen = ImageDraw.Draw(image)
    count, radius = COUNTS[scene.number], scale * 0.27 * SIZES[scene.size]
    x, y = (scale * v + rng.normal(0, scale * 0.015) for v in PLACES[scene.place])
    if count > 1:
        radius *= 0.7
    around = rng.uniform(0, 2 * np.pi)
    tint = tuple(int(np.clip(v + rng.normal(0, 10), 0, 255)) for v in COLORS[color])
    for i in range(count):
        angle = around + 2 * np.pi * i / count
        away = 0 if count == 1 else 1.1 * radius
        _draw_shape(pen, shape, x + away * np.cos(angle), y + away * np.sin(angle), radius, tint)
    small = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), np.float64)
    noisy = small + rng.normal(0, 6, small.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _draw_shape(
    pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, color: tuple[int, ...]
) -> None:
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        pen.ellipse(box, color)
    elif shape == "ring":
        pen.ellipse(box, None, color, max(1, round(r * 0.4)))
    elif shape == "square":
        pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), color)
    elif shape == "cross":
        arm = 0.3 * r
        pen.rectangle((x - r, y - arm, x + r, y + arm), color)
        pen.rectangle((x - arm, y - r, x + arm, y + r), color)
    else:
        points = 3 if shape == "triangle" else 10
        corners = []
        for i in range(points):
            length = r * (1.1 if points == 3 else 1.1 if i % 2 == 0 else 0.45)
            angle = 2 * np.pi * i / points - np.pi / 2
            corners.append((x + length * np.cos(angle), y + length * np.sin(angle)))
        pen.polygon(corners, color)


def write_scenes(root: Path, seed: int, train: int = 4000, test: int = 400) -> tuple[int, int]:
    """Write ``train.csv`` and ``test.csv`` with their pictures; the test shows unseen combinations only."""
    seen = [label for label in LABELS if label not in UNSEEN]
    for part, count, labels, stream in (("train", train, seen, 0), ("test", test, UNSEEN, 1)):
        rng = np.random.default_rng([seed, stream])
        (root / part).mkdir(parents=True, exist_ok=True)
        with (root / f"{part}.csv").open("w", encoding="utf-8", newline="") as f:
            table = csv.writer(f)
            table.writerow(["filepath", "caption", "label"])
            for i in range(count):
                scene = random_scene(rng, labels)
                file = f"{part}/{i:05}.png"
                draw(scene, rng).save(root / file)
                table.writerow([file, scene.caption, scene.label])
    return train, test
