# SPDX-License-Identifier: Apache-2.0
"""Training of CLIP: data sources, resuming, accumulation, processes, evaluation."""

import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import vision_accel as va
from tests.train.test_distributed import free_port, run
from vision_accel import cli
from vision_accel.data.captions import open_captions
from vision_accel.data.source import DataError
from vision_accel.train import Config, ConfigError, checkpoint
from vision_accel.train.tasks.contrastive import retrieval

COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


def picture(color, i):
    rng = np.random.default_rng(i)
    pixels = np.clip(np.array(COLORS[color]) + rng.normal(0, 20, (20, 24, 3)), 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same 24 pairs as a folder, a table, and two tars; and a folder of classes."""
    root = tmp_path_factory.mktemp("captions")
    (root / "folder/deep").mkdir(parents=True)
    rows = ["filepath\tcaption"]
    tars = [tarfile.open(root / f"shard{i}.tar", "w") for i in range(2)]  # noqa: SIM115
    for i in range(24):
        color = [*COLORS][i % 3]
        name, data, text = f"deep/{i:02}.png", picture(color, i), f"a photo number {i} of a {color} wall"
        (root / "folder" / name).write_bytes(data)
        (root / "folder" / f"deep/{i:02}.txt").write_text(f"{text}\n\n{color}\n" if i == 0 else text)
        rows.append(f"folder/{name}\t{text}")
        for ending, content in (("png", data), ("txt", text.encode())):
            info = tarfile.TarInfo(f"{i:02}.{ending}")
            info.size = len(content)
            tars[i % 2].addfile(info, io.BytesIO(content))
        (root / f"classes/{color}").mkdir(parents=True, exist_ok=True)
        (root / f"classes/{color}/{i}.png").write_bytes(data)
    for tar in tars:
        tar.close()
    (root / "table.tsv").write_text("\n".join(rows))
    return root


@pytest.fixture
def options(sources, tmp_path):
    config = Config(task="contrastive")
    config.augment.scale, config.augment.flip = (0.9, 1.0), 0.0
    config.data.train = str(sources / "folder")
    config.data.batch_size, config.data.workers = 8, 0
    config.model.name, config.contrastive.vocab_size = "test_clip", 540
    config.model.overrides = {"vision.depth": 1, "text.depth": 1}
    config.optim.lr = 2e-3
    config.train.out, config.train.device, config.train.log_every = str(tmp_path / "run"), "cpu", 1
    config.train.steps, config.train.save_every, config.train.eval_every = 4, 2, 4
    return config


def test_the_same_pairs_from_everywhere(sources):
    folder, table = open_captions(str(sources / "folder")), open_captions(str(sources / "table.tsv"))
    tars = open_captions(str(sources / "shard*.tar"))
    assert len(folder) == len(table) == len(tars) == 24
    assert folder.captions(0) == ("a photo number 0 of a red wall", "red")
    texts = [{s.captions(i)[0] for i in range(len(s))} for s in (folder, table, tars)]
    assert texts[0] == texts[1] == texts[2]
    assert tars.read(0) == folder.read(0) == table.read(0)
    assert len(open_captions(f"{sources / 'shard0.tar'}::{sources / 'table.tsv'}")) == 36


def test_halves_of_pairs_are_counted(sources, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        files = {"a.png": picture("red", 0), "a.json": b'{"caption": "one"}', "b.txt": b"two"}
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    found = open_captions(str(tmp_path / "x.tar"))
    assert [found.captions(i) for i in range(len(found))] == [("one",)]
    assert found.problems == [("x.tar/b", "no image")]
    whole = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:700])
    (tmp_path / "no.tar").write_bytes(b"not a tar" * 200)
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("no.tar", "not a tar"),
        ("x.csv", r"no column filepath or .* \(it has a, b\); name it with contrastive.image_column"),
        ("empty", "no pictures with captions"),
        ("none", "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            open_captions(str(tmp_path / name))


def test_learns_resumes_and_exports(options, sources, tmp_path):
    options.data.val, options.contrastive.zero_shot = str(sources / "table.tsv"), str(sources / "classes")
    options.train.steps, options.train.eval_every = 30, 30
    result = va.train.fit(options)
    assert result.metrics["eval_zero_shot_top1"] == 1
    assert result.metrics["eval_text_to_image_r10"] > 0.5
    model = va.load(result.run_dir / "model")
    labels = va.zero_shot(model, sources / "classes", [*COLORS])
    assert [r.label for r in labels] == ["blue"] * 8 + ["green"] * 8 + ["red"] * 8
    lines = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] / 1.5


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_run_has_the_same_bits(options, tmp_path, accumulate):
    options.train.accumulate, options.model.patch_dropout = accumulate, 0.25
    whole = va.train.fit(options)
    options.train.out, options.train.steps = str(tmp_path / "cut"), 2
    options.schedule.name, options.schedule.warmup_steps = "constant", 0
    va.train.fit(options)
    options.train.resume, options.train.steps = True, 4
    va.train.fit(options)
    options.train.out, options.train.resume = str(tmp_path / "again"), False
    va.train.fit(options)
    a, b = (checkpoint.load_latest(tmp_path / d / "checkpoints") for d in ("cut", "again"))
    assert a.step == b.step == whole.step == 4
    for stem, tensors in a.tensors.items():
        assert all(torch.equal(t, b.tensors[stem][name]) for name, t in tensors.items())


@pytest.mark.parametrize("siglip", [False, True])
def test_micro_batches_give_the_large_batchs_gradients(options, tmp_path, siglip):
    options.optim.name, options.optim.lr, options.optim.clip_norm = "sgd", 0.1, 0.0
    if siglip:
        options.model.overrides["init_logit_bias"] = -4.0
    runs = []
    for accumulate in (1, 4):
        options.train.accumulate, options.train.out = accumulate, str(tmp_path / str(accumulate))
        va.train.fit(options)
        runs.append(checkpoint.load_latest(tmp_path / str(accumulate) / "checkpoints"))
    for name, value in runs[0].tensors["model"].items():
        torch.testing.assert_close(runs[1].tensors["model"][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("siglip", [False, True])
def test_two_processes_equal_one(zygote, options, tmp_path, siglip):
    options.optim.name, options.optim.lr = "sgd", 0.1
    if siglip:
        options.model.overrides["init_logit_bias"] = -4.0
    options.train.out = str(tmp_path / "one")
    one, one_lines = run(zygote, options)
    options.train.accumulate, options.train.out = 1 + siglip, str(tmp_path / "two")
    two, two_lines = run(zygote, options, world=2)
    for name, value in one.tensors["model"].items():
        torch.testing.assert_close(two.tensors["model"][name], value, rtol=1e-4, atol=1e-5)
    for a, b in zip(one_lines, two_lines, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


@pytest.mark.slow
def test_torchrun_of_the_command_equals_one_process(sources, tmp_path):
    flags = {"data.train": sources / "folder", "data.batch-size": 8, "data.workers": 0, "train.device": "cpu"}
    flags |= {"model.name": "test_clip", "contrastive.vocab-size": 540, "optim.name": "sgd", "optim.lr": 0.1}
    flags |= {"train.steps": 3, "train.save-every": 3}
    command = ["train", "clip", *(word for k, v in flags.items() for word in (f"--{k}", str(v)))]
    assert cli.main([*command, "--train.out", str(tmp_path / "one")]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    torchrun += [free_port(), "-m", "vision_accel", *command, "--train.out", str(tmp_path / "two")]
    subprocess.run(torchrun, check=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    one, two = (checkpoint.load_latest(tmp_path / d / "checkpoints").tensors["model"] for d in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


def test_locked_tower_does_not_change(options):
    options.contrastive.lock_image, options.contrastive.unlocked_image_groups = True, 1
    options.optim.layer_decay = 0.8
    before = va.train.tasks.create_task(options, va.train.distributed.World(torch.device("cpu")))
    torch.manual_seed(0)
    before.create_model()
    result = va.train.fit(options)
    state = checkpoint.load_latest(result.run_dir / "checkpoints").tensors
    assert not any(name.startswith("visual.") for name in state["optimizer"])
    assert any(name.startswith("visual_projection.") for name in state["optimizer"])
    assert any(name.startswith("text.blocks.") for name in state["optimizer"])


def test_bad_options(options, sources):
    for change, message in (
        (lambda c: setattr(c.model, "name", "vit_tiny_patch16_224"), "TypeError|expected a CLIP|no option"),
        (lambda c: setattr(c.contrastive, "vocab_size", 5), "vocab_size must be at least 514"),
        (lambda c: setattr(c.contrastive, "vocab_size", 0), "no tokenizer.*contrastive.vocab_size learns"),
        (lambda c: setattr(c.model, "init_from", "x"), "contrastive.vocab_size: .* has a vocabulary already"),
        (lambda c: setattr(c.data, "train", ""), "data.train: name captioned pictures"),
    ):
        config = va.train.from_dict(options.to_dict())
        change(config)
        with pytest.raises(ConfigError, match=message):
            va.train.fit(config)


def test_retrieval():
    images = torch.eye(12)
    assert retrieval(images, images)["eval_mean_recall"] == 1
    shifted = retrieval(images, images.roll(1, 0))
    assert shifted["eval_image_to_text_r1"] == 0
    same = torch.ones(12, 3)  # every caption is the same: nothing is better than the right one
    assert retrieval(same, same)["eval_text_to_image_r1"] == 1
