# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from tests import reference_libs
from vision_accel.cli import main
from vision_accel.cli.bench_data import photograph, pillow_transform


# The webdataset library leaves its files open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_loader_has_a_row(capsys):
    assert (
        main(
            [
                "bench",
                "data",
                "--images",
                "12",
                "--rounds",
                "1",
                "--workers",
                "1",
                "--batch-size",
                "4",
                "--model",
                "test_vit",
                "--json",
            ]
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    names = [row["loader"] for row in report["rows"]]
    for form in ("folder", "tars"):
        assert f"ours, {form}" in names
        assert f"torch DataLoader + Pillow, {form}" in names
    assert "webdataset + Pillow, tars" in names
    assert all(row["images_per_s"] > 0 for row in report["rows"])
    assert report["bottleneck"] in {"loader", "model"}


def test_mistakes(capsys):
    for argv, message in (
        (["--images", "0"], "must be positive"),
        (["--image", "1"], "did you mean '--images'"),
        (["--data", "/none"], "no such file or folder"),
    ):
        assert main(["bench", "data", *argv]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parity
def test_the_peer_does_what_timm_does():
    reference_libs.timm()
    import io

    from PIL import Image
    from timm.data import create_transform

    theirs = create_transform((3, 224, 224), is_training=False, interpolation="bicubic", crop_pct=0.875)
    data = photograph(np.random.default_rng(0))
    expected = theirs(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(pillow_transform(data), expected)
