# SPDX-License-Identifier: Apache-2.0
import io
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from vision_accel.data import dali
from vision_accel.data.augment import AugmentConfig, train_transform
from vision_accel.data.dali import DaliLoader, DaliOptions, DaliTransform, create_loader
from vision_accel.data.folder import ImageFolder
from vision_accel.data.loader import EvalImages, Loader, TrainImages, collate_eval, collate_train
from vision_accel.data.preprocess import Preprocess
from vision_accel.data.rand_augment import OPERATIONS, Operation, apply, argument
from vision_accel.data.sampler import BatchPlan, Order
from vision_accel.data.source import DataError

pytest.importorskip("nvidia.dali", reason="DALI is for Linux on x86-64 and SBSA")

RECIPE = Preprocess(size=(32, 40), resize_to=(40, 48), resize="squash")
GREY = 127.5  # a normalised value times this is in grey levels
EVERYTHING = AugmentConfig(
    interpolation="random",
    vertical_flip=0.5,
    rand_augment="rand-m9-mstd0.5-inc1",
    color_jitter=(0.4, 0.4, 0.4, 0.1),
    grayscale=0.2,
    erase=0.5,
    erase_mode="pixel",
    erase_count=3,
)


def pictures(n, size=(70, 90)):
    """Smooth pictures with some noise, as photographs are."""
    rng = np.random.default_rng(0)
    for _ in range(n):
        small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize(size[::-1], Image.Resampling.BICUBIC), np.int16)
        yield Image.fromarray(np.clip(pixels + rng.integers(-8, 9, pixels.shape), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for i, picture in enumerate(pictures(60)):
        file = root / f"c{i % 2}/{i:02}.{'png' if i % 5 == 0 else 'jpg'}"
        file.parent.mkdir(exist_ok=True)
        picture.save(file)
    return root


def train(source, config, options=None, start=0, stop=5, batch=12, **how):
    samples = TrainImages(source, train_transform(RECIPE, config), 3)
    plan = BatchPlan(Order(len(source), 3), batch, start, stop)
    cpu = torch.device("cpu")
    loader = create_loader(samples, plan, collate_train, dali=options, batch_size=batch, device=cpu, **how)
    with loader:
        return list(loader)


def evaluated(source, recipe, options=None, batch=7, **how):
    samples = EvalImages(source, recipe)
    keys = [list(range(i, min(i + batch, len(source)))) for i in range(0, len(source), batch)]
    cpu = torch.device("cpu")
    with create_loader(
        samples, keys, collate_eval, dali=options, batch_size=batch, device=cpu, **how
    ) as loader:
        return list(loader)


def same(a, b):
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.bad == y.bad
        assert x.indices == y.indices
        assert x.tensors.keys() == y.tensors.keys()
        assert all(torch.equal(x.tensors[k], y.tensors[k]) for k in x.tensors)
    return True


def difference(a, b):
    """(mean, largest) difference of the images of two lists of batches, in grey levels."""
    d = torch.cat(
        [(x.tensors["image"] - y.tensors["image"]).abs().flatten() for x, y in zip(a, b, strict=True)]
    )
    return float(d.mean()) * GREY, float(d.max()) * GREY


EXACT = DaliOptions(resize="exact", threads=2)
FAST = DaliOptions(resize="dali", threads=2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("config", [AugmentConfig(), EVERYTHING], ids=["default", "everything"])
def test_exact_training_images_are_those_of_the_builtin_loader(root, config, workers):
    source = ImageFolder(root)
    assert same(train(source, config), train(source, config, EXACT, workers=workers))


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        Preprocess(size=(32, 32), resize="longest", fill=(9, 8, 7)),
        Preprocess(size=(50, 100), resize="none", crop_offset="floor"),
    ],
    ids=["squash", "border", "none"],
)
def test_exact_evaluation_is_that_of_the_builtin_loader(root, recipe):
    source = ImageFolder(root)
    assert same(evaluated(source, recipe), evaluated(source, recipe, EXACT))


# Largest and mean difference in grey levels that DALI's resizing may have.
@pytest.mark.parametrize(
    ("name", "mean", "largest"),
    [("nearest", 0, 0), ("bilinear", 0.2, 2.1), ("bicubic", 0.2, 2.1), ("lanczos", 0.2, 3.1)],
)
def test_resizing_of_dali_is_near_pillow(root, name, mean, largest):
    source = ImageFolder(root)
    for resize in ("squash", "longest"):
        recipe = Preprocess(size=(32, 40), resize=resize, interpolation=name, fill=(200, 3, 90))
        got = difference(evaluated(source, recipe), evaluated(source, recipe, FAST))
        assert got[0] <= mean + 1e-3
        assert got[1] <= largest + 1e-3


@pytest.mark.parametrize("crop", ["random_resized", "random", "center"])
def test_the_same_crops_and_flips_as_the_builtin_loader(root, crop):
    config = AugmentConfig(crop=crop, vertical_flip=0.3, interpolation="random", erase=0.5, erase_count=2)
    source = ImageFolder(root)
    mean, largest = difference(train(source, config), train(source, config, FAST))
    assert mean < 0.21
    assert largest < 6.1  # another crop would be off by a hundred


# Mean and largest difference in grey levels from Pillow; pixels that move are interpolated in another way at
# the edge of the image, and hue turns in another colour space.
BOUNDS = {
    "Sharpness": (0.6, 16),
    "Equalize": (3, 12),
    "Hue": (25, 140),
    "AutoContrast": (0.6, 1.1),
    "Color": (0.1, 1.1),
}
MOVING = {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}


def test_operations_are_near_pillow():
    from nvidia.dali import fn, pipeline_def, types

    from vision_accel.data import dali_operations

    fill, picture = (124, 116, 104), next(pictures(1, (120, 150)))
    known = dali_operations.names(EVERYTHING)
    calls = [Operation("Grayscale"), Operation("Hue", 0.1), Operation("Hue", -0.05)]
    for name in OPERATIONS:
        values = {argument(name, m, s, True) for m in (2, 5, 9.5) for s in (1, -1)}
        calls += [Operation(name, v, Image.Resampling.BILINEAR) for v in sorted(values)]

    def feed():
        fields = (
            [dali_operations.code([c], 0, known) for c in calls],
            [dali_operations.value([c], 0) for c in calls],
            [dali_operations.matrix([c], 0, (120, 150)) for c in calls],
        )
        kinds = (np.int32, np.float32, np.float32)
        return [np.asarray(picture)] * len(calls), *map(np.array, fields, kinds)

    def pipeline():
        kinds = [types.UINT8, types.INT32, types.FLOAT, types.FLOAT]
        image, code, value, matrix = fn.external_source(
            source=feed, num_outputs=4, batch=True, dtype=kinds, ndim=[3, 0, 0, 2]
        )
        image = fn.reshape(image, layout="HWC")
        return dali_operations.vary(image, code, matrix, value, fill, known)

    make = pipeline_def(batch_size=len(calls), num_threads=1, device_id=None, enable_conditionals=True)
    (images,) = make(pipeline)().run()
    for i, call in enumerate(calls):
        d = np.abs(np.asarray(images[i], np.int16) - np.asarray(apply(call, picture, fill)))
        mean, largest = BOUNDS.get(call.name, (0.05, 1.1))
        if call.name in MOVING:
            assert np.mean(d > 3) < 0.03, call
        else:
            assert d.mean() <= mean, call
            assert d.max() <= largest, call


@pytest.mark.parametrize("options", [EXACT, FAST], ids=["exact", "dali"])
def test_a_sample_depends_on_nothing_but_seed_and_position(root, options):
    source = ImageFolder(root)
    whole = train(source, EVERYTHING, options)
    for start in (1, 4):
        assert same(train(source, EVERYTHING, options, start=start), whole[start:])
    assert same(train(source, EVERYTHING, options, workers=2), whole)
    small = train(source, EVERYTHING, DaliOptions(options.resize, threads=1, prefetch=1), batch=4, stop=15)
    one = torch.cat([b.tensors["image"] for b in small])
    assert torch.equal(one, torch.cat([b.tensors["image"] for b in whole]))


def test_batches_stay_as_they_are(root):
    """DALI's memory is handed over, not copied: it must not be used again while anybody holds it."""
    source = ImageFolder(root)
    samples = TrainImages(source, DaliTransform(RECIPE, AugmentConfig(), FAST), 3)
    held, copies = [], []
    with DaliLoader(samples, BatchPlan(Order(60, 3), 12, 0, 30), collate_train, batch_size=12) as loader:
        for batch in loader:
            image = batch.tensors["image"]
            held.append(image[3:7])  # a view keeps the whole alive
            copies.append(image[3:7].clone())
            image[0] = 7.0  # and it is the user's
    del batch, image, loader
    junk = [torch.full_like(h, 5.0) for h in held]
    assert len(held) == len(junk) == 30
    assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))


def jpeg(picture, **options):
    file = io.BytesIO()
    picture.save(file, "JPEG", **options)
    return file.getvalue()


def break_files(root, tmp_path):
    """A copy of the pictures with a broken file of every kind."""
    shutil.copytree(root, tmp_path / "photos")
    whole = (root / "c1/01.jpg").read_bytes()
    scan = whole.index(b"\xff\xda")
    broken = {
        "c1/01.jpg": whole[: len(whole) // 2],
        "c0/02.jpg": b"",
        "c1/03.jpg": b"no image",
        "c0/04.jpg": whole[:scan] + bytes(range(256)) * 20,
        "c0/10.png": (root / "c0/10.png").read_bytes()[:-100],
        "c1/07.jpg": whole.replace(b"\xff\xc4\x00\x1f\x00", b"\xff\xc4\x00\x1f\xff"),
        "c0/08.jpg": whole[: whole.index(b"\xff\xc0") + 5] + b"\xff\xff\xff\xff" + whole[scan - 100 :],
    }
    for name, data in broken.items():
        (tmp_path / "photos" / name).write_bytes(data)
    return ImageFolder(tmp_path / "photos"), broken


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("structure", [True, False], ids=["structure", "decoding"])
def test_broken_samples_are_found_and_replaced(root, tmp_path, monkeypatch, capfd, structure, workers):
    source, broken = break_files(root, tmp_path)
    if not structure:  # everything reaches DALI, which fails on whole batches

        def trusting(data):
            try:
                return Image.open(io.BytesIO(data)).size[::-1]
            except OSError:
                return 70, 90

        monkeypatch.setattr(dali, "plain_size", trusting)
    plain = train(source, AugmentConfig())
    assert {b.file for batch in plain for b in batch.bad} == set(broken)
    assert same(plain, train(source, AugmentConfig(), EXACT, workers=workers))
    capfd.readouterr()  # DALI's decoders write to stderr


def test_broken_samples_are_left_out_of_an_evaluation(root, tmp_path, monkeypatch, capfd):
    source, broken = break_files(root, tmp_path)
    monkeypatch.setattr(dali, "plain_size", lambda _: (70, 90))
    plain = evaluated(source, RECIPE, batch=1)
    assert sum(not b.tensors for b in plain) == len(broken)
    assert same(plain, evaluated(source, RECIPE, EXACT, batch=1))
    capfd.readouterr()


def test_what_only_dali_cannot_read_is_decoded_here(tmp_path, monkeypatch, capfd):
    for i, picture in enumerate(pictures(8)):
        (tmp_path / "c").mkdir(exist_ok=True)
        picture.save(tmp_path / f"c/{i}.{'gif' if i % 3 == 0 else 'jpg'}")
    monkeypatch.setattr(dali, "plain_size", lambda _: (70, 90))
    source = ImageFolder(tmp_path)
    assert same(evaluated(source, RECIPE, batch=4), evaluated(source, RECIPE, EXACT, batch=4))
    capfd.readouterr()


def test_images_of_every_kind(tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    picture = next(pictures(1))
    exif = Image.Exif()
    for i in range(1, 9):
        exif[0x0112] = i
        picture.save(folder / f"exif{i}.jpg", exif=exif)
        picture.save(folder / f"exif{i}.png", exif=exif)
    for size in ((1, 1), (1, 4000), (3000, 2), (17, 33)):
        picture.resize(size).save(folder / f"{size[0]}x{size[1]}.jpg", quality=95, subsampling=0)
        picture.resize(size).save(folder / f"{size[0]}x{size[1]}.progressive.jpg", progressive=True)
    for mode in ("L", "LA", "P", "RGBA", "1"):
        picture.convert(mode).save(folder / f"{mode}.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("L").save(folder / "grey.jpg")
    Image.fromarray(np.arange(6000, dtype=np.uint16).reshape(60, 100) * 10).save(folder / "16.png")
    picture.save(folder / "two.gif", save_all=True, append_images=[picture.rotate(90)])
    picture.save(folder / "x.webp")
    picture.save(folder / "x.tiff")
    picture.save(folder / "x.bmp")
    source = ImageFolder(tmp_path)
    recipe = Preprocess(size=(32, 40))
    assert same(evaluated(source, recipe), evaluated(source, recipe, EXACT))
    mean, largest = difference(evaluated(source, recipe), evaluated(source, recipe, FAST))
    assert mean < 0.21
    assert largest < 12.1  # of a dithered black-and-white picture


def test_a_size_above_the_limit_is_refused_before_decoding(tmp_path):
    (tmp_path / "c").mkdir()
    data = jpeg(next(pictures(1)))
    at = data.index(b"\xff\xc0") + 5
    (tmp_path / "c/big.jpg").write_bytes(data[:at] + b"\xff\xdc\xff\xdc" + data[at + 4 :])
    (tmp_path / "c/small.jpg").write_bytes(data)
    (batch,) = evaluated(ImageFolder(tmp_path), RECIPE, FAST)
    assert batch.tensors["image"].shape == (1, 3, 32, 40)
    assert [b.file for b in batch.bad] == ["c/big.jpg"]
    assert "65500 x 65500" in batch.bad[0].error or "MAX_IMAGE_PIXELS" in batch.bad[0].error


def test_a_run_of_unreadable_images_is_an_error_after_the_good_batches(tmp_path):
    for i in range(30):
        path = tmp_path / f"a/{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not an image")
    with pytest.raises(DataError, match="20 images in a row could not be read, first a/"):
        train(ImageFolder(tmp_path), AugmentConfig(), FAST)


def test_errors(root, monkeypatch):
    source = ImageFolder(root)
    box = Preprocess(size=(32, 40), interpolation="box")
    with pytest.raises(
        DataError, match="DALI resizes with nearest, bilinear, bicubic, lanczos, not with box"
    ):
        evaluated(source, box, FAST)
    assert same(evaluated(source, box), evaluated(source, box, EXACT))
    with pytest.raises(DataError, match="cannot take the place of a function"):
        evaluated(source, lambda data: data, FAST)
    monkeypatch.setitem(sys.modules, "nvidia.dali.fn", None)
    with pytest.raises(DataError, match=r"vision-accel\[dali\]"):
        evaluated(source, RECIPE, FAST)


def test_leaving_early_ends_the_workers(root):
    samples = TrainImages(ImageFolder(root), DaliTransform(RECIPE, AugmentConfig(), FAST), 3)
    plan = BatchPlan(Order(60, 3), 12, 0, 50)
    with DaliLoader(samples, plan, collate_train, batch_size=12, workers=2) as loader:
        next(loader)
        assert len(loader.processes) == 2
    assert not any(p.is_alive() for p in loader.processes)
    assert isinstance(loader, DaliLoader)
    assert not isinstance(loader, Loader)
