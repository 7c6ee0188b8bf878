# SPDX-License-Identifier: Apache-2.0
"""Training on folders and tars: the same samples, none lost or doubled when resumed, bad ones named."""

import itertools
import json
import os
import random
import shutil
import signal
import struct
from pathlib import Path

import pytest

from tests.data.test_tars import png, write
from vision_accel.data.captions import open_captions
from vision_accel.data.folder import open_images
from vision_accel.data.pack import pack
from vision_accel.data.sampler import Order
from vision_accel.train import ConfigError, DataError, fit


@pytest.fixture(scope="module")
def tars(image_root, tmp_path_factory):
    """The training folder as three tars."""
    folder = tmp_path_factory.mktemp("tars")
    pack(open_images(image_root / "train"), folder, max_count=25)
    return folder


@pytest.fixture
def options(small_run):
    small_run.data.log_samples = True
    small_run.train.steps, small_run.train.save_every, small_run.train.eval_every = 10, 2, 10
    small_run.data.val, small_run.model.overrides = "", small_run.model.overrides | {"depth": 1}
    return small_run


def seen(config, rank=0):
    """Names of the samples, step by step."""
    lines = (Path(config.train.out) / f"samples.{rank}.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines if line.endswith("}")]  # a kill may cut the last
    assert [r["step"] for r in records] == list(range(len(records)))
    return [r["samples"] for r in records]


def bad(config):
    lines = (Path(config.train.out) / "bad_samples.jsonl").read_text().splitlines()
    return {json.loads(line)["file"]: json.loads(line)["error"] for line in lines}


@pytest.mark.parametrize("form", ["folder", "tars"])
def test_every_sample_once_an_epoch(options, tars, form):
    if form == "tars":
        options.data.train = str(tars)
    result = fit(options)
    assert result.epoch == 2.0
    source = open_images(options.data.train)
    names = list(itertools.chain(*seen(options)))
    everything = sorted(source.name(i) for i in range(60))
    assert sorted(names[:60]) == sorted(names[60:]) == everything
    assert names == [source.name(Order(60, 0)[p].image) for p in range(120)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 4])
@pytest.mark.parametrize("form", ["folder", "tars"])
@pytest.mark.parametrize("loader", ["builtin", "dali"])
def test_killed_at_random_it_sees_exactly_the_remaining_samples(options, tars, zygote, loader, form, workers):
    if loader == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is for Linux on x86-64 and SBSA")
    options.data.loader, options.data.dali_threads = loader, 1
    if form == "tars":
        options.data.train = f"{tars}/{{000000..000002}}.tar"
    options.data.workers = workers
    options.train.resume = True
    log = Path(options.train.out) / "samples.0.jsonl"
    child = zygote.start(options)
    child.wait_for(log, f'"step": {random.Random(f"{form}{workers}").randrange(3, 9)}')
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    before = seen(options)
    child = zygote.start(options)
    assert child.wait() == 0, child.log.read_text()
    source = open_images(options.data.train)
    order = [source.name(Order(60, 0)[p].image) for p in range(120)]
    assert list(itertools.chain(*seen(options))) == order
    assert seen(options)[: len(before)] == before


def test_several_sources_with_weights(options, tars, image_root):
    options.data.train = f"{image_root / 'train'}::{tars}/000000.tar"
    options.data.weights, options.train.steps = (1, 3), 7
    fit(options)
    names = list(itertools.chain(*seen(options)))[:84]
    of_tar = [n for n in names if "000000.tar" in n]
    assert 60 <= len(of_tar) <= 66  # three of four; an epoch has 85 samples
    assert len(set(of_tar)) == 25
    options.data.weights = (1, 2, 3)
    options.train.out += "2"
    with pytest.raises(ConfigError, match=r"data.weights: one weight for each of 2 sources"):
        fit(options)


def test_drawn_with_replacement_in_blocks(options, tars):
    options.data.train, options.data.resample, options.data.shuffle_block = str(tars), True, 8
    fit(options)
    names = list(itertools.chain(*seen(options)))
    assert len(set(names[:60])) < 60


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("form", ["folder", "tars"])
def test_broken_files_are_named_and_nothing_else_is_lost(options, image_root, tmp_path, form, workers):
    root = tmp_path / "images"
    for part in range(4):  # 240 files
        shutil.copytree(image_root / "train", root, dirs_exist_ok=True, copy_function=_copy(part))
    (root / "red/3.1.png").write_bytes((root / "red/3.1.png").read_bytes()[:200])
    (root / "blue/4.0.jpg").write_bytes(b"\xff\xd8 not really")
    planted = {"red/3.1.png", "blue/4.0.jpg"}
    if form == "tars":
        out = tmp_path / "tars"
        pack(open_images(root), out, max_count=100)
        tars = open_images(out)
        stories = {}
        for tar in sorted(out.glob("*.tar")):
            stories |= {f"{tar.name}/{k}": v for k, v in _files(tar).items()}
        planted = {n for n in (tars.name(i) for i in range(len(tars))) if stories[n] in planted}
        write(out / "half.tar", [("a.png", png())])
        planted |= {"half.tar/a.png"}
        root = out
    options.data.train, options.data.workers, options.data.batch_size = str(root), workers, 40
    options.train.steps = 6
    result = fit(options)
    assert result.step == 6
    assert set(bad(options)) == planted
    assert result.bad_samples == len(planted)
    assert all(bad(options).values())
    options.train.out, options.data.max_bad_fraction = str(tmp_path / "strict"), 0.004
    with pytest.raises(DataError, match=r"cannot be read, more than the allowed 0.40%"):
        fit(options)


def test_every_kind_of_bad_sample_is_skipped_counted_and_listed(options, image_root, tmp_path):
    """A table of captions, a folder and a tar with one of each kind."""
    red = image_root / "train/red"
    good = (red / "0.jpg").read_bytes()
    huge = _jpeg_header(good, 60_000, 60_000)
    kinds = {
        "corrupt": b"\xff\xd8\xff\xe0 nothing",
        "truncated": good[: len(good) // 2],
        "huge": huge,
        "text": b"<html>not found</html>",
        "empty": b"",
    }
    root = tmp_path / "folder"
    shutil.copytree(image_root / "train", root)
    for name, data in kinds.items():
        (root / f"red/{name}.jpg").write_bytes(data)
    (root / "red/gone.jpg").symlink_to(tmp_path / "nowhere")
    options.data.train, options.data.max_bad_fraction, options.train.steps = str(root), 0.2, 12
    fit(options)
    found = bad(options)
    assert set(found) == {f"red/{name}.jpg" for name in [*kinds, "gone"]}
    assert "more than the limit" in found["red/huge.jpg"] or "MAX_IMAGE_PIXELS" in found["red/huge.jpg"]
    assert found["red/empty.jpg"] == "empty file"
    assert found["red/text.jpg"] == "not an image of a known format"
    assert found["red/gone.jpg"] == "no such file or directory"

    rows = [f"{red}/{i}.{'png' if i % 2 else 'jpg'},red {i}" for i in range(12)]
    rows += [f"{root}/red/{name}.jpg,{name}" for name in kinds] + [f"{red}/13.png,", "missing.jpg,missing"]
    (tmp_path / "table.csv").write_text("image,caption\n" + "\n".join(rows))
    options.task, options.data.train, options.data.max_bad_fraction = (
        "contrastive",
        f"{tmp_path}/table.csv",
        0.6,
    )
    options.model.name, options.contrastive.vocab_size, options.model.img_size = "test_clip", 540, None
    options.model.overrides = {"vision.depth": 1, "text.depth": 1}
    options.train.out = str(tmp_path / "clip")
    fit(options)
    stems = {Path(f).stem: why for f, why in bad(options).items()}
    assert set(stems) == {*kinds, "13", "missing"}
    assert stems["13"] == "no caption"
    assert stems["missing"] == "no such file or directory"

    pack(open_captions(f"{tmp_path}/table.csv"), tmp_path / "tars", max_count=8)
    options.data.train, options.train.out = str(tmp_path / "tars"), str(tmp_path / "clip-tars")
    fit(options)
    tars = open_captions(options.data.train)
    captions = {tars.name(i): tars.captions(i)[0] for i in range(len(tars))}
    assert {captions[name] for name in bad(options)} == set(kinds)


def test_an_autoencoder_trains_on_tars_with_or_without_labels(options, tars, tmp_path):
    options.task, options.model.name, options.data.train = "autoencode", "autoencoder_kl_sd", str(tars)
    options.model.overrides = {"block_out_channels": "8,16", "layers_per_block": 1, "norm_num_groups": 4}
    options.autoencode.disc_weight, options.train.steps = 0.0, 2
    fit(options)
    folder = set(itertools.chain(*seen(options)))
    assert len(folder) == 24
    options.data.train, options.train.out = (
        str(write(tmp_path / "x.tar", [("a.png", png())])),
        f"{tmp_path}/x",
    )
    assert fit(options).step == 2


def _jpeg_header(data, height, width):
    """The JPEG with another size in its header."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def _copy(part):
    def copy(source, target):
        target = Path(target)
        shutil.copy(source, target.with_name(f"{target.stem}.{part}{target.suffix}"))

    return copy


def _files(tar):
    """Image in the tar -> file it was packed from."""
    import tarfile

    with tarfile.open(tar) as f:
        members = f.getnames()
        return {
            image: json.loads(f.extractfile(f"{image[:8]}.json").read())["file"]
            for image in members
            if not image.endswith((".cls", ".json"))
        }
