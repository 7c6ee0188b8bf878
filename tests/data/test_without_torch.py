# SPDX-License-Identifier: Apache-2.0
"""Images are prepared on machines that have no torch."""

import subprocess
import sys

import numpy as np
from PIL import Image

from vision_accel.data.augment import AugmentConfig, train_transform
from vision_accel.data.preprocess import Preprocess

PROGRAM = """
import sys
sys.modules["torch"] = None  # importing it fails
import numpy as np
import vision_accel as va
from vision_accel.data.augment import AugmentConfig, train_transform
from vision_accel.data.preprocess import Preprocess
recipe = Preprocess(size=(96, 80), resize_to=(100, 100))
config = AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1", erase=1.0)
path, out = sys.argv[1:]
batch = recipe.batch([path] * 3)
assert va.ops.resample(np.zeros((4, 4, 3), np.uint8), (2, 2)).shape == (2, 2, 3)
assert va.info()["threading"] == "own pool"
np.savez(out, batch=batch, train=train_transform(recipe, config)(path, np.random.default_rng(5)))
assert not [m for m in sys.modules if m.startswith("torch") and sys.modules[m] is not None]
"""


def test_same_bits_without_torch(tmp_path):
    path, out = tmp_path / "a.png", tmp_path / "out.npz"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (601, 900, 3), dtype=np.uint8)).save(path)
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(path), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = np.load(out)
    recipe = Preprocess(size=(96, 80), resize_to=(100, 100))
    assert np.array_equal(results["batch"], recipe.batch([path] * 3))
    config = AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1", erase=1.0)
    train = train_transform(recipe, config)(path, np.random.default_rng(5))
    assert np.array_equal(results["train"], train)
