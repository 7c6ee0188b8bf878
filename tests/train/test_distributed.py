# SPDX-License-Identifier: Apache-2.0
import json
import shutil
import socket
from pathlib import Path

import pytest
import torch

import vision_accel as va
from vision_accel.train import checkpoint


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def run(zygote, config, world=1):
    base = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(world)}
    ranks = [{**base, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(world)]
    children = [zygote.start(config, env=env if world > 1 else {}) for env in ranks]
    for child in children:
        assert child.wait() == 0, child.log.read_text()
    run_dir = Path(config.train.out)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return checkpoint.load_latest(run_dir / "checkpoints"), lines


@pytest.mark.slow
def test_two_processes_equal_two_micro_batches(zygote, small_run, tmp_path):
    small_run.optim.name, small_run.optim.lr, small_run.train.steps = "sgd", 0.05, 6
    small_run.augment.mixup, small_run.model.drop_path, small_run.train.ema_decay = 0.8, 0.2, 0.5
    small_run.train.eval_every, small_run.train.save_every = 3, 3
    broken = tmp_path / "images"
    shutil.copytree(small_run.data.train, broken)
    (broken / "red/1.png").write_bytes(b"broken")
    small_run.data.train = str(broken)

    small_run.train.accumulate, small_run.train.out = 4, str(tmp_path / "one")
    one, one_lines = run(zygote, small_run)
    small_run.train.accumulate, small_run.train.out = 2, str(tmp_path / "two")
    two, two_lines = run(zygote, small_run, world=2)
    for stem in ("model", "ema"):
        for name, value in one.tensors[stem].items():
            torch.testing.assert_close(value, two.tensors[stem][name], rtol=1e-4, atol=1e-5)
    for a, b in zip(one_lines, two_lines, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"images_per_s"}:
            assert a[key] == pytest.approx(b[key], rel=1e-3), key
    bad = (tmp_path / "two/bad_samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in bad] == ["red/1.png"]

    small_run.train.resume, small_run.train.steps = True, 8
    longer, _ = run(zygote, small_run, world=2)
    assert longer.step == 8


@pytest.mark.slow
def test_weights_in_parts_equal_whole_ones(zygote, small_run, tmp_path):
    small_run.train.steps, small_run.train.eval_every, small_run.train.save_every = 4, 2, 2
    small_run.train.accumulate, small_run.train.ema_decay, small_run.optim.clip_norm = 2, 0.5, 0.5
    small_run.schedule.name, small_run.schedule.warmup_steps = "constant", 1  # the same for 2 and for 4 steps
    runs = {}
    for parallel in ("ddp", "fsdp"):
        small_run.train.parallel, small_run.train.out = parallel, str(tmp_path / parallel)
        runs[parallel] = run(zygote, small_run, world=2)
    for stem, tensors in runs["ddp"][0].tensors.items():
        assert tensors.keys() == runs["fsdp"][0].tensors[stem].keys()
        for name, value in tensors.items():
            torch.testing.assert_close(value, runs["fsdp"][0].tensors[stem][name], rtol=1e-3, atol=1e-4)
    for a, b in zip(runs["ddp"][1], runs["fsdp"][1], strict=True):
        for key in a.keys() - {"images_per_s"}:
            assert a[key] == pytest.approx(b[key], rel=1e-3), key
    assert va.load(tmp_path / "fsdp/model").config == va.load(tmp_path / "ddp/model").config

    small_run.train.out, small_run.train.steps = str(tmp_path / "cut"), 2
    run(zygote, small_run, world=2)
    small_run.train.resume, small_run.train.steps = True, 4
    resumed, _ = run(zygote, small_run, world=2)
    for stem, tensors in runs["fsdp"][0].tensors.items():
        for name, value in tensors.items():
            assert torch.equal(value, resumed.tensors[stem][name]), name


def test_batch_that_two_processes_cannot_share(zygote, small_run):
    small_run.data.batch_size = 3
    small_run.train.steps = 1
    base = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    children = [zygote.start(small_run, env={**base, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]
    for child in children:
        assert child.wait() == 1
        assert (
            "ConfigError data.batch_size: batch size 3 cannot be cut into 1 micro-batches"
            in child.log.read_text()
        )
