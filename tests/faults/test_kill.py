# SPDX-License-Identifier: Apache-2.0
"""A run that is killed at any moment goes on from its last complete checkpoint, bit for bit."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

import vision_accel as va
from vision_accel.train import checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected(zygote, image_root, tmp_path_factory):
    """index.json of the last checkpoint of an uninterrupted run, and how long that run took."""
    config = options(image_root, tmp_path_factory.mktemp("straight"))
    start = time.monotonic()
    child = zygote.start(config)
    assert child.wait() == 0, child.log.read_text()
    return fingerprints(config), time.monotonic() - start


def options(image_root, folder):
    """Everything that has a state or draws random numbers is on."""
    from vision_accel.train import Config

    config = Config()
    config.data.train, config.data.val = str(image_root / "train"), str(image_root / "val")
    config.data.batch_size, config.data.workers, config.train.accumulate = 12, 0, 2
    config.model.name, config.model.img_size, config.model.drop_path = "vit_tiny_patch16_224", 16, 0.2
    config.model.overrides = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    config.model.patch_dropout, config.augment.mixup, config.augment.cutmix = 0.25, 1.0, 1.0
    config.train.out, config.train.device, config.train.log_every = str(folder / "run"), "cpu", 2
    config.train.steps, config.train.save_every, config.train.eval_every, config.train.keep = 6, 2, 2, 1
    config.train.ema_decay, config.train.resume = 0.9, True
    return config


def fingerprints(config):
    """SHA-256 of the weights, the optimiser, the average and the rest of the state after the last step."""
    return json.loads((Path(config.train.out) / "checkpoints/step_000006/index.json").read_text())["files"]


def finish(zygote, config):
    child = zygote.start(config)
    assert child.wait() == 0, child.log.read_text()
    left = {p.name for p in Path(config.train.out).rglob("*") if ".tmp" in p.name}
    assert not left
    va.load(Path(config.train.out) / "model")
    return fingerprints(config)


def operations(zygote, config):
    """(number, text) of the operations of a whole run, as the zygote's log numbers them."""
    child = zygote.start(config)
    assert child.wait() == 0
    lines = [line.split(maxsplit=1) for line in child.log.read_text().splitlines()]
    return [(int(line[0]), line[1]) for line in lines if line[0].isdigit()]


# Moments of the second save and of the export after it, in the zygote's words.
MOMENTS = [
    "write_text .*/step_000004.tmp/state.json",
    "save_file .*/step_000004.tmp/optimizer.safetensors",
    "sync .*/step_000004.tmp/optimizer.safetensors",
    "write_text .*/step_000004.tmp/index.json",
    "sync .*/step_000004.tmp$",
    "rename .*/step_000004.tmp .*/step_000004$",
    "replace .*/LATEST.tmp .*/LATEST$",
    "rename .*/step_000002 .*/step_000002.tmp$",
    "sync .*/model.tmp/model/model.safetensors",
    "rename .*/model.tmp/model .*/model$",
]


def test_killed_at_each_phase_of_a_save(zygote, image_root, tmp_path, expected):
    (tmp_path / "counted").mkdir()
    known = operations(zygote, options(image_root, tmp_path / "counted"))
    begin = next(i for i, (_, text) in enumerate(known) if "step_000004.tmp" in text)
    for moment in MOMENTS:
        kill_at = next(n for n, text in known[begin:] if re.search(moment, text))
        folder = tmp_path / str(kill_at)
        folder.mkdir()
        config = options(image_root, folder)
        child = zygote.start(config, kill_at=kill_at)
        assert child.wait() == -signal.SIGKILL
        steps = [int(p.name[5:]) for p in Path(config.train.out).glob("checkpoints/step_??????")]
        assert max(steps) in (2, 4)
        checkpoint.load(Path(config.train.out) / f"checkpoints/step_{max(steps):06d}")
        assert finish(zygote, config) == expected[0], moment


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(zygote, image_root, tmp_path, expected, workers):
    rng = random.Random(workers)
    config = options(image_root, tmp_path)
    config.data.workers = workers
    kills = 0
    while kills < 6:
        child = zygote.start(config)
        time.sleep(rng.uniform(0, expected[1]))
        os.killpg(child.pid, signal.SIGKILL) if rng.random() < 0.5 else os.kill(child.pid, signal.SIGKILL)
        kills += 1
        if child.wait() == 0:
            break  # it was faster
    assert finish(zygote, config) == expected[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [0, 2])
def test_asked_to_stop(zygote, image_root, tmp_path, expected, number, workers):
    config = options(image_root, tmp_path)
    config.data.workers, config.train.save_every = workers, 100
    child = zygote.start(config)
    child.wait_for(Path(config.train.out) / "metrics.jsonl", '"step": 2')
    os.killpg(child.pid, number)  # workers get it too, as from Ctrl-C or a job manager
    assert child.wait() == 0, child.log.read_text()
    assert f"stopped by {number.name}" in child.log.read_text()
    saved = checkpoint.load_latest(Path(config.train.out) / "checkpoints")
    assert saved is not None
    assert 2 <= saved.step < 6
    assert finish(zygote, config) == expected[0]
