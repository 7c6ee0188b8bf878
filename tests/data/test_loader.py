# SPDX-License-Identifier: Apache-2.0
import os
import shutil
import signal
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from vision_accel.data.folder import ImageFolder
from vision_accel.data.images import load_image
from vision_accel.data.loader import (
    EvalImages,
    Loader,
    TrainImages,
    collate_eval,
    collate_train,
)
from vision_accel.data.preprocess import Preprocess
from vision_accel.data.sampler import BatchPlan, Order
from vision_accel.data.source import DataError


def augment(file, rng, delay=0.0):
    """A stand-in whose output depends on every pixel and on the generator."""
    time.sleep(delay)
    pixels = np.asarray(Image.fromarray(load_image(file)).resize((8, 8)), np.float32)
    return pixels.transpose(2, 0, 1) + rng.random(dtype=np.float32)


def prepare(file):
    return augment(file, np.random.default_rng(0))


def read(folder, start=0, stop=6, seed=5, **options):
    data = TrainImages(folder, augment, seed)
    with Loader(data, BatchPlan(Order(len(data), seed), 16, start, stop), collate_train, **options) as loader:
        return list(loader)


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x.tensors[k], y.tensors[k]) and x.bad == y.bad
        for x, y in zip(a, b, strict=True)
        for k in x.tensors
    )


@pytest.fixture
def folder(image_root):
    return ImageFolder(image_root / "train")


def break_files(image_root, tmp_path, *names):
    root = tmp_path / "images"
    shutil.copytree(image_root / "train", root)
    for name in names:
        (root / name).write_bytes((root / name).read_bytes()[:100])
    return ImageFolder(root)


def test_batches(folder):
    batch = read(folder)[0]
    assert batch.tensors["image"].shape == (16, 3, 8, 8)
    assert batch.tensors["image"].dtype == torch.float32
    assert batch.tensors["label"].dtype == torch.int64
    keys = [Order(60, 5)[p] for p in range(16)]
    assert batch.tensors["label"].tolist() == [folder.labels[k.image] for k in keys]


@pytest.mark.parametrize(("workers", "method"), [(1, "fork"), (2, "fork"), (2, "spawn")])
def test_the_same_for_any_number_of_workers(folder, workers, method):
    assert same(read(folder), read(folder, workers=workers, start_method=method))


def test_every_epoch_and_seed_augments_anew(folder):
    def sums(seed):
        batches = read(folder, stop=8, seed=seed)
        return {round(float(v), 3) for b in batches for v in b.tensors["image"].sum((1, 2, 3))}

    assert len(sums(5)) == 128
    assert not sums(5) & sums(6)


def test_reading_starts_anywhere(folder):
    whole = read(folder)
    assert all(same(read(folder, start=s), whole[s:]) for s in range(6))


def test_torch_generator_is_left_alone(folder):
    before = torch.get_rng_state()
    read(folder, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_unreadable_images_are_replaced_and_named(image_root, tmp_path):
    folder = break_files(image_root, tmp_path, "red/3.png", "blue/4.jpg")
    plain = read(folder)
    bad = {b.file: b.error for batch in plain for b in batch.bad}
    assert set(bad) == {"red/3.png", "blue/4.jpg"}
    assert all(bad.values())
    assert all(b.tensors["image"].shape[0] == 16 for b in plain)
    assert same(plain, read(folder, workers=2))
    keys = [Order(60, 5)[p] for p in range(96)]
    intact = read(ImageFolder(image_root / "train"))
    for i, key in enumerate(keys):  # nothing else changes
        ours, theirs = (b[i // 16].tensors["image"][i % 16] for b in (plain, intact))
        assert torch.equal(ours, theirs) == (folder.name(key.image) not in bad)


def test_a_run_of_unreadable_images_is_an_error(tmp_path):
    for i in range(30):
        path = tmp_path / f"a/{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not an image")
    with pytest.raises(DataError, match="20 images in a row could not be read, first a/"):
        read(ImageFolder(tmp_path), workers=1)


def test_evaluation_leaves_unreadable_images_out(image_root, tmp_path):
    folder = break_files(image_root, tmp_path, "red/3.png")
    batches = [list(range(i, min(i + 16, 60))) for i in range(0, 60, 16)]
    with Loader(EvalImages(folder, prepare), batches, collate_eval, workers=2) as loader:
        found = list(loader)
    labels = torch.cat([b.tensors["label"] for b in found])
    assert labels.bincount().tolist() == [20, 20, 19]
    assert [b.file for batch in found for b in batch.bad] == ["red/3.png"]


def test_threads_give_the_same_batches(image_root, tmp_path):
    folder = break_files(image_root, tmp_path, "red/3.png")
    batches = [list(range(i, min(i + 16, 60))) for i in range(0, 60, 16)]
    samples = EvalImages(folder, Preprocess(size=(8, 8)))
    read = []
    for threads in (False, True):
        with Loader(samples, batches, collate_eval, workers=2, threads=threads) as loader:
            read.append(list(loader))
    assert same(*read)
    assert [b.file for batch in read[1] for b in batch.bad] == ["red/3.png"]
    assert [b.indices for b in read[1]] == [b.indices for b in read[0]]
    before = threading.active_count()
    with Loader(samples, batches * 50, collate_eval, workers=2, threads=True) as loader:
        next(loader)
        assert threading.active_count() > before
    assert threading.active_count() == before  # stopped early


def test_an_error_of_a_thread_is_raised(folder):
    def broken(data):
        raise KeyError("a fault of the transform")

    with (
        Loader(EvalImages(folder, broken), [[0, 1]], collate_eval, workers=2, threads=True) as loader,
        pytest.raises(KeyError, match="a fault of the transform"),
    ):
        next(loader)


def test_a_killed_worker_is_an_error(folder):
    data = TrainImages(folder, partial(augment, delay=0.02), 0)
    plan = BatchPlan(Order(60, 0), 16, 0, 10_000)
    with Loader(data, plan, collate_train, workers=2) as loader:
        next(loader)
        workers = list(loader.processes)
        os.kill(workers[0].pid, signal.SIGKILL)
        with pytest.raises(DataError, match="a data loading worker died"):
            for _ in loader:
                pass
    assert not any(w.is_alive() for w in workers)


@pytest.mark.slow
def test_a_hanging_worker_is_an_error(folder):
    data = TrainImages(folder, partial(augment, delay=0.001), 0)
    plan = BatchPlan(Order(60, 0), 16, 0, 10_000)
    with Loader(data, plan, collate_train, workers=1, timeout=1.0) as loader:
        next(loader)
        workers = list(loader.processes)
        os.kill(workers[0].pid, signal.SIGSTOP)
        with pytest.raises(DataError, match="workers hang"):
            for _ in loader:
                pass
    assert not any(w.is_alive() for w in workers)


def test_workers_leave_signals_to_the_training_process(folder):
    with Loader(
        TrainImages(folder, augment, 0), BatchPlan(Order(60, 0), 4, 0, 40), collate_train, workers=1
    ) as loader:
        next(loader)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(loader.processes[0].pid, number)
        assert len(list(loader)) == 39
