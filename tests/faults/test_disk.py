# SPDX-License-Identifier: Apache-2.0
"""A disk that fails while a run saves: the last checkpoint stays, and there is one clear error."""

import errno
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from vision_accel.train import CheckpointError, checkpoint, fit
from vision_accel.train.schedule import learning_rate


def check_and_continue(config):
    """The checkpoint of step 2 is the only one, nothing is half written, and the run goes on from it."""
    run = Path(config.train.out)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step_000002"]
    assert checkpoint.load(run / "checkpoints/step_000002").step == 2
    assert (run / "LATEST").read_text() == "step_000002\n"
    config.train.resume = True
    assert fit(config).step == 4


@pytest.fixture
def saving(small_run):
    small_run.train.steps, small_run.train.save_every = 4, 2
    return small_run


def test_file_size_limit(saving, monkeypatch):
    """The kernel refuses to write more than 50 kB to a file: a quota, in effect."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = checkpoint.save

    def limited(made, *args):
        if made.step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        return save(made, *args)

    monkeypatch.setattr(checkpoint, "save", limited)
    try:
        with pytest.raises(
            CheckpointError, match=r"step_000004: cannot save the checkpoint: .*File too large"
        ) as e:
            fit(saving)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(e.value)
    monkeypatch.undo()
    check_and_continue(saving)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(saving, small_disk, monkeypatch):
    saving.train.out = str(small_disk / "run")
    save = checkpoint.save

    def fill(made, *args):
        if made.step == 4:
            (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
        return save(made, *args)

    monkeypatch.setattr(checkpoint, "save", fill)
    with pytest.raises(CheckpointError, match=r"step_000004: cannot save the .*No space left on device"):
        fit(saving)
    (small_disk / "filler").unlink()
    monkeypatch.undo()
    check_and_continue(saving)


@pytest.mark.parametrize(
    ("operation", "number"),
    [("mkdir", errno.EROFS), ("write", errno.ENOSPC), ("fsync", errno.EIO), ("rename", errno.EIO)],
)
def test_failing_operation(saving, monkeypatch, operation, number):
    save = checkpoint.save

    def refuse(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    def failing(made, *args):
        with monkeypatch.context() as patch:
            if made.step == 4:
                target = os if operation == "fsync" else Path
                name = {"write": "write_text"}.get(operation, operation)
                patch.setattr(target, name, refuse)
            return save(made, *args)

    monkeypatch.setattr(checkpoint, "save", failing)
    with pytest.raises(
        CheckpointError, match=f"step_000004: cannot save the checkpoint: {os.strerror(number)}"
    ):
        fit(saving)
    monkeypatch.undo()
    check_and_continue(saving)


@pytest.mark.parametrize("file", ["curves.png", "config.yaml.tmp"])
def test_other_files_of_the_run(saving, file):
    (Path(saving.train.out) / file).mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"cannot write: Is a directory"):
        fit(saving)


def test_metrics(saving, monkeypatch):
    metrics = Path(saving.train.out) / "metrics.jsonl"

    def break_metrics(options, peak, step, total):
        if step == 3:
            metrics.unlink()
            metrics.mkdir()
        return learning_rate(options, peak, step, total)

    monkeypatch.setattr("vision_accel.train.loop.learning_rate", break_metrics)
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: cannot write: Is a directory"):
        fit(saving)
    assert checkpoint.load_latest(Path(saving.train.out) / "checkpoints").step == 2


def test_export_that_fails_leaves_the_model_before(saving, monkeypatch):
    fit(saving)
    model = Path(saving.train.out) / "model"
    before = {p.name: p.read_bytes() for p in model.iterdir()}
    saving.train.resume, saving.train.steps, saving.train.export = True, 6, "last"

    def refuse(_task, _model, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vision_accel.train.tasks.classify.Classify.export", refuse)
    with pytest.raises(CheckpointError, match=r"model: cannot write: No space left on device"):
        fit(saving)
    assert {p.name: p.read_bytes() for p in model.iterdir()} == before
    assert not list(model.parent.glob("*.tmp"))
