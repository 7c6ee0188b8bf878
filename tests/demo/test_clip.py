# SPDX-License-Identifier: Apache-2.0
import csv
import json

import numpy as np
import pytest
from PIL import Image

from vision_accel.demo import clip, scenes
from vision_accel.demo.errors import DemoError


def read(root, part):
    with (root / f"{part}.csv").open(encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_unseen_combinations_are_in_no_training_picture(tmp_path):
    assert len({*scenes.LABELS}) == len(scenes.COLORS) * len(scenes.SHAPES)
    assert {u.split()[0] for u in scenes.UNSEEN} == {*scenes.COLORS}
    assert scenes.write_scenes(tmp_path, 0, 300, 200) == (300, 200)
    train, test = read(tmp_path, "train"), read(tmp_path, "test")
    assert {r["label"] for r in test} == {*scenes.UNSEEN}
    assert not {r["label"] for r in train} & {*scenes.UNSEEN}
    for row in train:
        assert f"{row['label']} shape" in row["caption"]
        assert not any(unseen in row["caption"] for unseen in scenes.UNSEEN)
    # Every colour and every shape by itself is seen.
    assert {w for r in train for w in r["label"].split()} == {*scenes.COLORS, *scenes.SHAPES}


def test_scenes_are_a_function_of_the_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        scenes.write_scenes(tmp_path / name, seed, 20, 5)
    pictures = {n: (tmp_path / n / "train/00007.png").read_bytes() for n in "abc"}
    assert pictures["a"] == pictures["b"] != pictures["c"]
    assert read(tmp_path / "a", "train") == read(tmp_path / "b", "train") != read(tmp_path / "c", "train")


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_a_picture_shows_what_its_caption_says(shape):
    def inked(number, place="in the middle", size="large"):
        scene = scenes.Scene(f"yellow {shape}", size, number, place)
        return np.asarray(scenes.draw(scene, np.random.default_rng(0)))[..., 1] > 190

    assert inked("a").sum() > 1.2 * inked("a", size="small").sum() > 20
    left, top = inked("a", "on the left"), inked("two", "at the top")
    assert np.nonzero(left)[1].mean() + 3 < np.nonzero(inked("a"))[1].mean()
    assert np.nonzero(top)[0].mean() < 13
    assert scenes.Scene(f"red {shape}", "small", "two", "on the left").caption(place=False) == (
        f"two small red {shape} shapes"
    )


def test_run_and_resume(tmp_path):
    lines = []
    for resume in (False, True):
        with pytest.raises(DemoError, match=r"is below 0\.9"):
            clip.run(tmp_path, steps=4 + 4 * resume, resume=resume, pictures=200, say=lines.append)
    assert any(line.startswith("trained 8 steps") for line in lines)
    assert any("never seen in training: 0." in line for line in lines)
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "eval_mean_recall" in line] == [1, 2, 3, 4, 6, 8]
    for name in ("predictions.png", "retrieval.png", "curves.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 600
