# SPDX-License-Identifier: Apache-2.0
"""Training on images that DALI loads."""

import dataclasses
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train.test_loop import Sabotaged, another, assert_equal, crash, final_weights, metrics
from vision_accel.data.dali import DaliLoader
from vision_accel.train import Config, DataError, evaluate, fit

pytest.importorskip("nvidia.dali", reason="DALI is for Linux on x86-64 and SBSA")


def samples(config):
    lines = (Path(config.train.out) / "samples.0.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def scores(config):
    return [{k: v for k, v in m.items() if k != "images_per_s"} for m in metrics(config)]


@pytest.fixture
def run(small_run):
    small_run.data.loader, small_run.data.dali_threads, small_run.data.log_samples = "dali", 1, True
    return small_run


def test_exact_training_is_that_of_the_builtin_loader(run):
    """The same samples, pixels, weights and evaluations, bit for bit."""
    run.augment.rand_augment = "rand-m9-mstd0.5-inc1"
    builtin = another(run, "builtin")
    builtin.data.loader = "builtin"
    fit(run)
    fit(builtin)
    assert samples(run) == samples(builtin)
    assert_equal(final_weights(run), final_weights(builtin))
    assert scores(run) == scores(builtin)


def pack(folder, tars):
    """The images of a folder of classes as two tars."""
    tars.mkdir()
    files = sorted(folder.rglob("*.*"))
    classes = sorted({f.parent.name for f in files})
    for part in range(2):
        with tarfile.open(tars / f"{part}.tar", "w") as tar:
            for i, file in enumerate(files[part::2]):
                label = str(classes.index(file.parent.name)).encode()
                for ending, data in ((file.suffix, file.read_bytes()), (".cls", label)):
                    info = tarfile.TarInfo(f"{i:03}{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than there are cores
@pytest.mark.parametrize("workers", [0, 4])
@pytest.mark.parametrize("kind", ["folder", "tars"])
def test_a_crashed_run_resumes_exactly(run, image_root, tmp_path, kind, workers):
    if kind == "tars":
        pack(image_root / "train", tmp_path / "tars")
        run.data.train, run.data.val = str(tmp_path / "tars"), ""
    run.augment.color_jitter, run.augment.mixup, run.augment.erase = (0.4, 0.4, 0.4, 0.0), 1.0, 0.5
    run.data.dali_resize = "dali"
    run.train.save_every, run.train.eval_every = 3, 8
    straight = another(run, "straight")
    fit(straight)
    run.data.workers = workers
    with pytest.raises(OSError, match="power cut"):
        fit(run, Sabotaged(run, [5], crash))
    run.train.resume = True
    assert fit(run).step == 8
    assert len(samples(run)) == 8
    assert samples(run) == samples(straight)
    assert_equal(final_weights(run), final_weights(straight))
    assert scores(run) == scores(straight)


def test_broken_files_are_listed_as_by_the_builtin_loader(run, image_root, tmp_path, capfd):
    names = [f"{c}/{i}" for c in ("red", "blue") for i in range(60)]
    rng = np.random.default_rng(0)
    for name in names:
        file = tmp_path / f"images/{name}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(file)
    planted = {"red/7.jpg": b"", "blue/30.jpg": (tmp_path / "images/blue/30.jpg").read_bytes()[:700]}
    for name, data in planted.items():
        (tmp_path / "images" / name).write_bytes(data)
    run.data.train, run.data.val, run.train.steps = str(tmp_path / "images"), "", 12
    builtin = another(run, "builtin")
    builtin.data.loader = "builtin"
    found = {}
    for config in (run, builtin):
        assert fit(config).bad_samples == 2
        lines = (Path(config.train.out) / "bad_samples.jsonl").read_text().splitlines()
        found[config.data.loader] = sorted((b["file"], b["error"]) for b in map(json.loads, lines))
    assert {file for file, _ in found["dali"]} == set(planted)
    assert found["dali"] == found["builtin"]
    assert samples(run) == samples(builtin)
    capfd.readouterr()


def test_captions_and_autoencoders(run, image_root, tmp_path):
    """The other tasks: exact DALI gives the losses of the built-in loader."""
    for i in range(16):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        (tmp_path / "pairs").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"pairs/{i:02}.jpg")
        (tmp_path / f"pairs/{i:02}.txt").write_text(f"photo number {i}\nthe {i}th photo\n")
    clip = Config(task="contrastive")
    clip.data.train = clip.data.val = str(tmp_path / "pairs")
    clip.model.name, clip.contrastive.vocab_size = "test_clip", 540
    clip.model.overrides = {"vision.depth": 1, "text.depth": 1}
    vae = Config(task="autoencode")
    vae.data.train = vae.data.val = str(tmp_path / "pairs")
    vae.model.name, vae.model.img_size = "autoencoder_kl_sd", 32
    vae.model.overrides = {"block_out_channels": "8,16", "layers_per_block": 1, "norm_num_groups": 4}
    vae.autoencode.disc_weight = 0.0
    for config in (clip, vae):
        config.data.batch_size, config.data.eval_batch_size, config.data.workers = 8, 8, 0
        config.data.dali_threads = 1
        config.train.device, config.train.log_every, config.train.steps = "cpu", 1, 2
        results = []
        for loader in ("dali", "builtin"):
            config.data.loader = loader
            config.train.out = str(tmp_path / f"{config.task}-{loader}")
            fit(config)
            results.append(scores(config))
        assert results[0] == results[1]


def test_evaluation_through_dali(run, image_root, monkeypatch):
    run.data.loader, run.train.steps = "builtin", 2
    model = str(fit(run).run_dir / "model")
    used = []
    monkeypatch.setattr(
        DaliLoader, "__next__", lambda self, step=DaliLoader.__next__: used.append(self) or step(self)
    )
    results = [evaluate(model, image_root / "val", loader=name) for name in ("builtin", "dali")]
    assert used
    builtin, dali = (dataclasses.replace(r, images_per_s=0.0) for r in results)
    assert builtin == dali


def test_mistakes(run, monkeypatch):
    run.augment.interpolation, run.data.dali_resize = "hamming", "dali"
    with pytest.raises(DataError, match="DALI resizes with"):
        fit(run)
    run.train.out += "2"
    monkeypatch.setitem(sys.modules, "nvidia.dali.fn", None)
    with pytest.raises(DataError, match=r"vision-accel\[dali\]"):
        fit(run)
