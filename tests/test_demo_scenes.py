# SPDX-License-Identifier: Apache-2.0
"""The scenes of ``vision-accel demo clip``."""

import csv

import numpy as np
from PIL import Image

from vision_accel.demo import scenes


def test_scenes_are_a_function_of_the_seed(tmp_path):
    assert scenes.write_scenes(tmp_path / "a", 0, 30, 10) == (30, 10)
    scenes.write_scenes(tmp_path / "b", 0, 30, 10)
    scenes.write_scenes(tmp_path / "c", 1, 30, 10)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 42
    same = [(tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files]
    assert all(same)
    assert (tmp_path / "a/train.csv").read_bytes() != (tmp_path / "c/train.csv").read_bytes()


def test_test_shows_what_training_never_does(tmp_path):
    scenes.write_scenes(tmp_path, 0, 200, 60)
    labels = {}
    for part in ("train", "test"):
        with (tmp_path / f"{part}.csv").open(newline="") as f:
            rows = list(csv.DictReader(f))
        labels[part] = {row["label"] for row in rows}
        for row in rows[:5]:
            with Image.open(tmp_path / row["filepath"]) as image:
                assert image.size == (scenes.SIZE, scenes.SIZE)
            assert row["label"].split()[0] in row["caption"]
    assert labels["train"].isdisjoint(labels["test"])
    assert labels["test"] <= {*scenes.UNSEEN}
    # Every colour and every shape of the unseen combinations is known from others.
    for place in (0, 1):
        known = {x.split()[place] for x in labels["train"]}
        assert {x.split()[place] for x in scenes.UNSEEN} <= known


def test_every_shape_can_be_told_apart():
    rng = np.random.default_rng(0)
    pictures = {}
    for shape in scenes.SHAPES:
        scene = scenes.Scene(f"red {shape}", "large", "one", "in the middle")
        pictures[shape] = np.asarray(scenes.draw(scene, rng), np.float64)
        assert (np.abs(pictures[shape] - scenes.COLORS["red"]).max(-1) < 60).sum() > 30
    scene = scenes.Scene("red cross", "small", "two", "at the top")
    assert scene.caption == "two small red crosses at the top"
