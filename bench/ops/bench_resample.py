# SPDX-License-Identifier: Apache-2.0
import io

import numpy as np
import pytest
from PIL import Image

from bench.common import Workload
from vision_accel import ops

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# Source and resized sizes [h, w]; the centre square is kept. One thread, as in a data loader.
CASES = {
    "resize 375x500 to 224": {"source": (375, 500), "size": (224, 299)},
    "resize 3000x4000 to 224": {"source": (3000, 4000), "size": (224, 299)},
    "resize 256x256 to 384": {"source": (256, 256), "size": (384, 384)},
    "JPEG 375x500 to tensor": {"source": (375, 500), "size": (224, 299), "jpeg": True},
}


def photograph(h: int, w: int) -> Image.Image:
    """Structure on several scales, so that a JPEG of it is as large as one of a photograph."""
    rng = np.random.default_rng(0)
    layers = [
        rng.integers(0, 256, (max(1, h // n), max(1, w // n), 3), dtype=np.uint8) for n in (64, 16, 4, 1)
    ]
    resized = [np.asarray(Image.fromarray(x).resize((w, h)), np.float32) for x in layers]
    return Image.fromarray(np.clip(resized[0] * 0.6 + sum(resized[1:]) * 0.13, 0, 255).astype(np.uint8))


def make(source: tuple[int, int], size: tuple[int, int], jpeg: bool = False) -> Workload:
    image = photograph(*source)
    side = min(size)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    table = ops.normalization_table(MEAN, STD)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)

    def opened() -> Image.Image:
        if not jpeg:
            return image
        decoded = Image.open(io.BytesIO(file.getvalue()))
        decoded.load()
        return decoded

    def ours() -> object:
        pixels = ops.pillow_pixels(opened())
        return ops.resample(pixels, size, crop=(top, left, side, side), table=table, threads=1)

    def pillow() -> object:
        resized = opened().resize((size[1], size[0]), Image.Resampling.BICUBIC)
        x = np.asarray(resized.crop((left, top, left + side, top + side)), np.float32) / np.float32(255)
        return np.ascontiguousarray(((x - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1))

    return Workload(ours=ours, peers={"Pillow + numpy": pillow}, images=1, tolerance=0)


@pytest.mark.parametrize("case", CASES)
def bench_resample(measure, case):
    measure(make(**CASES[case]))
