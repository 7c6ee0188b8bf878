# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight pictures of several sizes and formats, some in a sub-folder, beside a text file."""
    rng = np.random.default_rng(0)
    root = tmp_path / "pictures"
    (root / "more").mkdir(parents=True)
    for i in range(8):
        pixels = rng.integers(0, 256, (30 + 5 * i, 50 - 3 * i, 3), np.uint8)
        place = root / "more" if i % 3 == 2 else root
        Image.fromarray(pixels).save(place / f"{i}.{'png' if i % 2 else 'jpg'}")
    (root / "notes.txt").write_text("not a picture")
    (root / "._0.jpg").write_bytes(b"what some systems leave beside files")
    return root
