# SPDX-License-Identifier: Apache-2.0
import json
import pickle
import random

import pytest
import torch

from vision_accel.train import CheckpointError, checkpoint
from vision_accel.train.checkpoint import Checkpoint


def make(step, value=0.0):
    weights = {"w": torch.randn(3, 5) + value, "half": torch.randn(4).bfloat16(), "n": torch.tensor(7)}
    return Checkpoint(
        step, {"model": weights, "ema": {"w": torch.zeros(2)}}, {"best": 0.5, "list": [1, None]}
    )


def save(root, *steps, keep=3):
    made = {s: make(s) for s in steps}
    for c in made.values():
        checkpoint.save(c, root / "checkpoints", keep, root / "LATEST")
    return made


def assert_same(a, b):
    assert (a.step, a.state) == (b.step, b.state)
    assert a.tensors.keys() == b.tensors.keys()
    for stem, tensors in a.tensors.items():
        assert tensors.keys() == b.tensors[stem].keys()
        assert all(torch.equal(t, b.tensors[stem][n]) for n, t in tensors.items())


def test_round_trip(tmp_path):
    made = save(tmp_path, 5)
    assert_same(checkpoint.load_latest(tmp_path / "checkpoints"), made[5])
    assert (tmp_path / "LATEST").read_text() == "step_000005\n"


def test_newest_are_kept(tmp_path):
    made = save(tmp_path, 90, 100, 1_000_000, 1_000_001, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_1000000", "step_1000001"]
    assert_same(checkpoint.load_latest(tmp_path / "checkpoints"), made[1_000_001])


def test_none(tmp_path):
    assert checkpoint.load_latest(tmp_path / "nowhere") is None
    assert checkpoint.load_latest(tmp_path) is None


def test_leftovers_are_ignored_and_removed(tmp_path):
    made = save(tmp_path, 1)
    (tmp_path / "checkpoints/step_000002.tmp").mkdir()
    (tmp_path / "checkpoints/step_000002.tmp/model.safetensors").write_bytes(b"half")
    assert_same(checkpoint.load_latest(tmp_path / "checkpoints"), made[1])
    save(tmp_path, 2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_000001", "step_000002"]


def files_of(root):
    return sorted((root / "checkpoints/step_000002").iterdir())


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_every_damage_is_detected(tmp_path, damage):
    save(tmp_path, 1, 2)
    rng = random.Random(0)
    for _ in range(200):
        file = rng.choice(files_of(tmp_path))
        intact = file.read_bytes()
        broken = bytearray(intact)
        if damage == "flip":
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        else:
            del broken[rng.randrange(len(broken)) :]
        file.write_bytes(broken)
        with pytest.raises(CheckpointError, match="step_000002: damaged checkpoint"):
            checkpoint.load(file.parent)
        file.write_bytes(intact)
    checkpoint.load(tmp_path / "checkpoints/step_000002")


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "index.json"])
def test_falls_back_to_the_checkpoint_before(tmp_path, caplog, file):
    made = save(tmp_path, 1, 2)
    (tmp_path / "checkpoints/step_000002" / file).unlink()
    assert_same(checkpoint.load_latest(tmp_path / "checkpoints"), made[1])
    assert "step_000002: damaged checkpoint" in caplog.text
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_000001", "step_000002.damaged"]
    save(tmp_path, 2)  # the run comes back to this step


def test_all_damaged(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "checkpoints/step_000001/index.json").write_text("{")
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
        checkpoint.load_latest(tmp_path / "checkpoints")


def test_pickles_are_not_executed(tmp_path):
    class Canary:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    save(tmp_path, 1)
    folder = tmp_path / "checkpoints/step_000001"
    (folder / "model.safetensors").write_bytes(pickle.dumps(Canary()))
    index = json.loads((folder / "index.json").read_text())
    index["files"]["model.safetensors"] = checkpoint._fingerprint(folder / "model.safetensors")
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="damaged checkpoint"):
        checkpoint.load(folder)
    assert not (tmp_path / "canary").exists()


def test_names_in_the_index_cannot_leave_the_folder(tmp_path):
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints/step_000001"
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    index = json.loads((folder / "index.json").read_text())
    index["files"]["../../secret.safetensors"] = checkpoint._fingerprint(tmp_path / "secret.safetensors")
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.load(folder)


def test_replace_folder(tmp_path):
    for text in ("one", "two"):
        (tmp_path / "model.tmp").mkdir()
        (tmp_path / "model.tmp/a").write_text(text)
        checkpoint.replace_folder(tmp_path / "model.tmp", tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model/a").read_text() == "two"
