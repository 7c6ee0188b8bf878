# SPDX-License-Identifier: Apache-2.0
import json
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from vision_accel.demo import autoencoder
from vision_accel.demo.errors import DemoError

pytest.importorskip("skimage")
pytest.importorskip("sklearn")


def weights(out, step):
    index = json.loads((Path(out) / f"run/checkpoints/step_{step:06d}/index.json").read_text())
    return index["files"]


def test_run_and_resume(tmp_path, monkeypatch):
    one = list(islice(autoencoder.photographs(), 1))
    monkeypatch.setattr(autoencoder, "photographs", lambda: iter(one))
    lines = []
    with pytest.raises(DemoError, match="is below 24"):
        autoencoder.run(tmp_path / "whole", steps=4, say=lines.append)
    assert any("held-out crops: PSNR" in line for line in lines)
    with Image.open(tmp_path / "whole" / "reconstructions.png") as picture:
        assert picture.width > 8 * autoencoder.SIZE
    # Interrupted after two of the four steps, as by a kill, and resumed.
    save = autoencoder.train.loop.checkpoint.save

    def killed(checkpoint, *args):
        save(checkpoint, *args)
        if checkpoint.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(autoencoder.train.loop.checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            autoencoder.run(tmp_path / "killed", steps=4)
    monkeypatch.setattr(autoencoder, "PSNR", 0.0)
    assert autoencoder.run(tmp_path / "killed", steps=4, resume=True) > 0
    assert weights(tmp_path / "killed", 4) == weights(tmp_path / "whole", 4)
