# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from tests.zygote import Zygote, open_zygote
from vision_accel import _C

if TYPE_CHECKING:
    from vision_accel.train import Config


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no GPU on this machine")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


@pytest.fixture(params=_C.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once with every instruction set that this machine has."""
    before = _C.active_isa()
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def image_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` (3 x 20) and ``val`` (3 x 6) folders of small noisy images that a color tells apart."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6)):
        for channel, name in enumerate(("red", "green", "blue")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (36 + i, 50 - i, 3))
                pixels[..., channel] = 255 - pixels[..., channel] // 4
                file = folder / f"{i}.{'png' if i % 2 else 'jpg'}"
                Image.fromarray(pixels.astype(np.uint8)).save(file)
    return root


@pytest.fixture
def small_run(image_root: Path, tmp_path: Path) -> "Config":
    """Options of a run of a few seconds: a tiny ViT on ``image_root``."""
    from vision_accel.train import Config

    config = Config()
    config.data.train, config.data.val = str(image_root / "train"), str(image_root / "val")
    config.data.batch_size, config.data.workers = 12, 0
    config.model.name, config.model.img_size = "vit_tiny_patch16_224", 32
    config.model.overrides = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    config.train.out, config.train.device, config.train.log_every = str(tmp_path / "run"), "cpu", 1
    config.train.steps = 8
    return config


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Starts training runs in processes of their own."""
    with open_zygote() as server:
        yield server
