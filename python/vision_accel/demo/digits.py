# SPDX-License-Identifier: Apache-2.0
"""scikit-learn's handwritten digits as real image files."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 32  # pixels; the originals are 8x8
HELD_OUT = 5  # every fifth image of each digit is for testing


def write_digits(root: Path) -> tuple[int, int]:
    """Write ``root/{train,test}/<digit>/<number>.{png,jpg}``; returns how many files each part has.

    1797 grey images, upscaled to 32x32. Every third file is a JPEG.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415  (only the demo needs it)

    digits = load_digits()
    seen = [0] * 10
    counts = {"train": 0, "test": 0}
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = "test" if seen[digit] % HELD_OUT == HELD_OUT - 1 else "train"
        seen[digit] += 1
        counts[part] += 1
        folder = root / part / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8))
        image = grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        if number % 3 == 2:
            image.save(folder / f"{number:04}.jpg", quality=95)
        else:
            image.save(folder / f"{number:04}.png")
    return counts["train"], counts["test"]
