# SPDX-License-Identifier: Apache-2.0
"""From JPEG files to a model's input through the public ``Preprocess``: decode, resize, crop, normalise."""

import io

import numpy as np
import pytest
from PIL import Image

from bench.common import Workload
from bench.ops.bench_resample import photograph
from vision_accel.data.preprocess import Preprocess

# One image on one core, and a batch on all of them; Pillow has one core in both.
CASES = {
    "JPEG 500x375, one core": {"count": 1, "threads": 1},
    "16 JPEGs 500x375, all cores": {"count": 16, "threads": 0},
}


def make(count: int, threads: int) -> Workload:
    recipe = Preprocess(size=(224, 224))
    width, height = 500, 375
    file = io.BytesIO()
    photograph(height, width).save(file, "JPEG", quality=90)
    files = [file.getvalue()] * count
    h, w = recipe.resized_size(height, width)
    left, top = round((w - 224) / 2), round((h - 224) / 2)

    def pillow() -> list[np.ndarray]:
        result = []
        for data in files:
            image = Image.open(io.BytesIO(data)).resize((w, h), Image.Resampling.BICUBIC)
            x = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / np.float32(255)
            x = (x - np.float32(recipe.mean)) / np.float32(recipe.std)
            result.append(np.ascontiguousarray(x.transpose(2, 0, 1)))
        return result

    return Workload(
        ours=lambda: list(recipe.batch(files, threads)),
        peers={"Pillow + numpy": pillow},
        images=count,
        tolerance=0,
    )


@pytest.mark.parametrize("case", CASES)
def bench_images(measure, case):
    measure(make(**CASES[case]))
