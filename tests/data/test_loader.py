# SPDX-License-Identifier: Apache-2.0
import os
import shutil
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from vision_accel.data.augment import AugmentConfig, train_transform
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
    with Loader(
        data, BatchPlan(Order(len(data), seed), 16, start, stop), collate_train, batch_size=16, **options
    ) as loader:
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
    with Loader(EvalImages(folder, prepare), batches, collate_eval, batch_size=16, workers=2) as loader:
        found = list(loader)
    labels = torch.cat([b.tensors["label"] for b in found])
    assert labels.bincount().tolist() == [20, 20, 19]
    assert [b.file for batch in found for b in batch.bad] == ["red/3.png"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("held", [True, False])
def test_images_handed_over_in_shared_memory(image_root, tmp_path, held, method):
    """They are those of no workers; memory is used again, but never while somebody holds a batch."""
    folder = break_files(image_root, tmp_path, "red/3.png", "blue/4.jpg")
    recipe = Preprocess(size=(12, 10))
    transform = train_transform(recipe, AugmentConfig(erase=0.5, rand_augment="rand-m9"))
    order = list(range(60)) * 3
    evaluation = [order[i : i + 16] for i in range(0, 180, 16)]
    for samples, batches, collate in (
        (TrainImages(folder, transform, 3), BatchPlan(Order(60, 3), 16, 0, 12), collate_train),
        (EvalImages(folder, recipe), [*evaluation, [folder_index(folder, "red/3.png")]], collate_eval),
    ):
        with Loader(samples, batches, collate, batch_size=16) as loader:
            plain = list(loader)
        got, places = [], set()
        with Loader(samples, batches, collate, batch_size=16, workers=2, start_method=method) as loader:
            for batch in loader:
                if batch.tensors:
                    places.add(batch.tensors["image"].data_ptr())
                if not held:  # a view is enough to keep the memory
                    batch = batch._replace(tensors={k: v.clone() for k, v in batch.tensors.items()})
                got.append(batch)
        assert same(plain, got)
        assert [b.indices for b in plain] == [b.indices for b in got]
        if method == "fork":
            assert (len(places) == 12) if held else (len(places) <= 6)


def folder_index(folder, name):
    return next(i for i in range(len(folder)) if folder.name(i) == name)


def test_a_view_keeps_the_images(folder):
    samples = TrainImages(folder, train_transform(Preprocess(size=(12, 10)), AugmentConfig()), 3)
    views, copies = [], []
    plan = BatchPlan(Order(60, 3), 16, 0, 40)
    with Loader(samples, plan, collate_train, batch_size=16, workers=2) as loader:
        for batch in loader:
            views.append(batch.tensors["image"][5:7])
            copies.append(views[-1].clone())
            batch.tensors["image"][0] = 7.0  # it is the user's
    del batch
    assert all(torch.equal(a, b) for a, b in zip(views, copies, strict=True))


def test_an_error_in_a_worker_is_raised(folder):
    def broken(data):
        raise KeyError("a fault of the transform")

    with (
        Loader(EvalImages(folder, broken), [[0, 1]], collate_eval, batch_size=2, workers=2) as loader,
        pytest.raises(KeyError, match="a fault of the transform"),
    ):
        next(loader)


def test_a_killed_worker_is_an_error(folder):
    data = TrainImages(folder, partial(augment, delay=0.02), 0)
    plan = BatchPlan(Order(60, 0), 16, 0, 10_000)
    with Loader(data, plan, collate_train, batch_size=16, workers=2) as loader:
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
    with Loader(data, plan, collate_train, batch_size=16, workers=1, timeout=1.0) as loader:
        next(loader)
        workers = list(loader.processes)
        os.kill(workers[0].pid, signal.SIGSTOP)
        with pytest.raises(DataError, match="workers hang"):
            for _ in loader:
                pass
    assert not any(w.is_alive() for w in workers)


def test_workers_leave_signals_to_the_training_process(folder):
    with Loader(
        TrainImages(folder, augment, 0),
        BatchPlan(Order(60, 0), 4, 0, 40),
        collate_train,
        batch_size=4,
        workers=1,
    ) as loader:
        next(loader)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(loader.processes[0].pid, number)
        assert len(list(loader)) == 39
