# SPDX-License-Identifier: Apache-2.0
import io
import math
import pickle

import numpy as np
import pytest
from PIL import Image

from tests import reference_libs
from vision_accel import ops
from vision_accel.data import augment
from vision_accel.data.augment import (
    AugmentConfig,
    draw_color_jitter,
    erase,
    erased_rectangles,
    random_rectangle,
    train_transform,
)
from vision_accel.data.images import ImageError
from vision_accel.data.preprocess import Preprocess
from vision_accel.data.rand_augment import OPERATIONS, Operation, RandAugment, apply, argument

RGB = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
IMAGE = Image.fromarray(RGB)
RECIPE = Preprocess(size=(32, 40), mean=(0.48, 0.45, 0.4), std=(0.26, 0.26, 0.27))
TABLE = ops.normalization_table(RECIPE.mean, RECIPE.std)


class Script:
    """A generator whose uniform numbers are given; the last one repeats."""

    def __init__(self, *values):
        self.values = list(values)

    def random(self):
        return self.values.pop(0) if len(self.values) > 1 else self.values[0]


def rng(seed=0):
    return np.random.default_rng(seed)


# Random resized crop ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(375, 500), (100, 100), (500, 200)], ids=str)
def test_rectangle_follows_its_distribution(size):
    h, w = size
    scale, ratio = (0.2, 0.6), (0.7, 1.3)
    g = rng()
    draws = np.array([random_rectangle(h, w, g, scale, ratio) for _ in range(3000)])
    top, left, height, width = draws.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= h).all()
    assert (left + width <= w).all()
    shares, ratios = height * width / (h * w), width / height
    slack = 1.5 / min(height.min(), width.min())  # sides are rounded
    assert shares.min() > scale[0] * (1 - slack)
    assert shares.max() < scale[1] * (1 + slack)
    assert ratios.min() > ratio[0] * (1 - slack)
    assert ratios.max() < ratio[1] * (1 + slack)
    if size == (100, 100):  # nothing is cut off: uniform share, log-uniform ratio, every place
        assert abs(shares.mean() - 0.4) < 0.01
        assert abs(np.log(ratios).mean() - (math.log(0.7) + math.log(1.3)) / 2) < 0.01
        assert top.min() == left.min() == 0
        assert (top + height).max() == (left + width).max() == 100


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((10, 1000), (0, 493, 10, 13)),
        ((1000, 10), (493, 0, 13, 10)),
        ((1, 1), (0, 0, 1, 1)),
        ((1, 9), (0, 4, 1, 1)),
    ],
    ids=str,
)
def test_rectangle_falls_back_to_the_centre(size, expected):
    assert random_rectangle(*size, Script(0.999), (0.5, 1.0), (3 / 4, 4 / 3)) == expected


@pytest.mark.parity
def test_crop_equals_torchvision(monkeypatch):
    reference_libs.timm()
    functional = pytest.importorskip("torchvision.transforms.functional")
    for name in ("bicubic", "bilinear"):
        transform = train_transform(RECIPE, AugmentConfig(interpolation=name, flip=0.5))
        for box in ((5, 7, 50, 23), (0, 0, 61, 83), (30, 40, 1, 1)):
            monkeypatch.setattr(augment, "random_rectangle", lambda *_, box=box: box)
            resized = functional.resized_crop(IMAGE, *box, [32, 40], functional.InterpolationMode(name))
            plain = functional.normalize(functional.to_tensor(resized), RECIPE.mean, RECIPE.std).numpy()
            assert np.array_equal(transform(IMAGE, Script(0.7)), plain)
            assert np.array_equal(transform(IMAGE, Script(0.3)), plain[:, :, ::-1])


def test_other_crops():
    centre = train_transform(RECIPE, AugmentConfig(crop="center", flip=0))
    assert np.array_equal(centre(IMAGE, rng()), RECIPE(IMAGE))
    fixed = train_transform(RECIPE, AugmentConfig(crop="random", flip=0))
    resized = RECIPE.resized_size(61, 83)
    whole = ops.resample(RGB, resized, table=TABLE)
    seen = set()
    for seed in range(200):
        x = fixed(IMAGE, rng(seed))
        places = [i for i in range(resized[1] - 40 + 1) if np.array_equal(x, whole[:, :, i : i + 40])]
        assert places
        seen.update(places)
    assert len(seen) == resized[1] - 40 + 1
    border = Preprocess(size=(40, 40), resize="longest", fill=(9, 8, 7))
    for crop in ("center", "random"):
        got = train_transform(border, AugmentConfig(crop=crop, flip=0))(IMAGE, rng())
        assert np.array_equal(got, border(IMAGE))


# The whole transform ------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("config", [AugmentConfig(), EVERYTHING], ids=["default", "everything"])
def test_is_a_pure_function_of_image_and_generator(config):
    transform = train_transform(RECIPE, config)
    copy = pickle.loads(pickle.dumps(transform))
    before = RGB.copy()
    results = []
    for seed in range(30):
        first = transform(RGB, rng(seed))
        assert first.shape == (3, 32, 40)
        assert first.dtype == np.float32
        assert first.flags.c_contiguous
        assert np.isfinite(first).all()
        assert np.array_equal(first, copy(IMAGE, rng(seed)))
        results.append(first.tobytes())
    assert len(set(results)) == 30
    assert np.array_equal(RGB, before)


def test_flips_happen_as_often_as_asked():
    plain = AugmentConfig(crop="center")
    reference = RECIPE(IMAGE)
    for field, flipped in (("flip", reference[:, :, ::-1]), ("vertical_flip", reference[:, ::-1])):
        for p in (0.0, 0.25, 1.0):
            config = AugmentConfig(**vars(plain) | {"flip": 0.0, "vertical_flip": 0.0} | {field: p})
            transform = train_transform(RECIPE, config)
            results = [transform(IMAGE, rng(seed)) for seed in range(400)]
            share = np.mean([np.array_equal(x, flipped) for x in results])
            assert share == p if p in {0.0, 1.0} else abs(share - p) < 0.08
            assert all(np.array_equal(x, flipped) or np.array_equal(x, reference) for x in results)


def test_pillow_steps_and_the_single_pass_agree():
    """A step that does nothing must not change the result: both routes draw the same crop."""
    single = train_transform(RECIPE, AugmentConfig())
    through_pillow = train_transform(RECIPE, AugmentConfig(rand_augment="rand-p0"))
    for seed in range(20):
        assert np.array_equal(single(IMAGE, rng(seed)), through_pillow(IMAGE, rng(seed)))


def test_grayscale():
    grey = train_transform(RECIPE, AugmentConfig(crop="center", flip=0, grayscale=1.0))(IMAGE, rng())
    values = [np.array([np.argmin(np.abs(TABLE[c] - v)) for v in grey[c].ravel()]) for c in range(3)]
    assert np.array_equal(values[0], values[1])
    assert np.array_equal(values[0], values[2])


def test_errors_name_the_file():
    transform = train_transform(RECIPE, AugmentConfig())
    with pytest.raises(ImageError, match="<3 bytes>"):
        transform(b"abc", rng())
    file = io.BytesIO()
    IMAGE.save(file, "PNG")
    assert np.array_equal(transform(file.getvalue(), rng(3)), transform(IMAGE, rng(3)))


@pytest.mark.parametrize(
    "change",
    [
        {"flip": 1.5}, {"vertical_flip": -0.1}, {"erase": 2}, {"scale": (0, 1)}, {"scale": (0.5, 0.4)},
        {"scale": (0.5, 1.1)}, {"ratio": (0, 1)}, {"ratio": (2, 1)}, {"interpolation": "cubic"},
        {"color_jitter": (0.1, 0.1, 0.1, 0.6)}, {"color_jitter": (-1, 0, 0, 0)}, {"crop": "corner"},
        {"erase_mode": "black"}, {"erase_count": 0}, {"grayscale": float("nan")}, {"rand_augment": "auto"},
    ],
    ids=str,
)  # fmt: skip
def test_bad_options_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        train_transform(RECIPE, AugmentConfig(**change))


# RandAugment --------------------------------------------------------------------------------------------

TIMM_NAMES = {"TranslateX": "TranslateXRel", "TranslateY": "TranslateYRel"}
INCREASING = {"Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness"}


@pytest.mark.parity
@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_equal_timm(name, increasing, monkeypatch):
    reference_libs.timm()
    theirs = pytest.importorskip("timm.data.auto_augment")
    their_name = TIMM_NAMES.get(name, name) + ("Increasing" if increasing and name in INCREASING else "")
    hparams = {"img_mean": (124, 116, 104), "interpolation": Image.Resampling.BILINEAR, "magnitude_max": 30}
    for magnitude in (0, 1, 4.3, 9, 10, 13):
        for sign in (1, -1):
            value = argument(name, magnitude, sign, increasing)
            got = apply(Operation(name, value, Image.Resampling.BILINEAR), IMAGE, (124, 116, 104))
            if name == "Posterize" and value < 1:  # timm passes this to Pillow, which refuses it
                assert not np.asarray(got).any()
                continue
            monkeypatch.setattr("random.random", lambda s=sign: 0.9 if s < 0 else 0.1)
            expected = theirs.AugmentOp(their_name, 1.0, magnitude, hparams)(IMAGE)
            assert np.array_equal(np.asarray(got), np.asarray(expected)), (magnitude, sign)


def test_syntax():
    assert RandAugment.parse("rand-m9-mstd0.5-inc1") == RandAugment(9, 2, 0.5, 0.5, 10, True)
    assert RandAugment.parse("rand") == RandAugment(10, 2, 0.5, 0.0, 10, False)
    assert RandAugment.parse("rand-n3-p0.7-m15-mmax20-inc0") == RandAugment(15, 3, 0.7, 0.0, 20, False)
    assert RandAugment.parse("rand-mstd101").magnitude_std == math.inf
    assert RandAugment.parse("rand-mstdinf").magnitude_std == math.inf


@pytest.mark.parametrize(
    "text", ["auto-m9", "rand-x3", "rand-m", "rand-m9.5", "rand--m9", "rand-tweights", "rand-m-3"]
)
def test_syntax_errors(text):
    with pytest.raises(ValueError, match="rand_augment"):
        RandAugment.parse(text)


def test_operations_are_drawn_evenly_and_with_their_probability():
    ra = RandAugment.parse("rand-m5-mstd1-n3-p0.4")
    g = rng()
    drawn = [(o.name, o.value) for _ in range(2000) for o in ra.draw(g, "random")]
    assert abs(len(drawn) / 6000 - 0.4) < 0.03
    counts = {name: sum(n == name for n, _ in drawn) for name in OPERATIONS}
    assert min(counts.values()) > 0.7 * len(drawn) / len(OPERATIONS)
    angles = np.array([v for n, v in drawn if n == "Rotate"])
    assert abs(np.mean(angles > 0) - 0.5) < 0.15
    assert abs(np.abs(angles).mean() - 15) < 1.5  # magnitude 5 of 10, 30 degrees at most
    assert 1 < np.abs(angles).std() < 6  # magnitude_std 1 is 3 degrees
    assert np.abs(angles).max() <= 30


def test_magnitude_is_drawn_from_its_whole_range_when_std_is_infinite():
    ra = RandAugment.parse("rand-m8-mstd101")
    g = rng()
    draws = np.array([ra._draw(g) for _ in range(2000)])
    assert draws.min() < 0.1
    assert 7.9 < draws.max() <= 8
    assert abs(draws.mean() - 4) < 0.2


# Colour jitter and random erasing -----------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("u", [0.0, 0.3, 0.999])
def test_jitter_equals_torchvision(which, u):
    reference_libs.timm()
    functional = pytest.importorskip("torchvision.transforms.functional")
    strength = [0.0, 0.0, 0.0, 0.0]
    strength[which] = 0.4
    (operation,) = draw_color_jitter(Script(0.1, 0.2, 0.3, 0.4, u), tuple(strength))
    got = apply(operation, IMAGE, (0, 0, 0))
    adjust = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")[which]
    factor = -0.4 + 0.8 * u if which == 3 else 0.6 + 0.8 * u
    assert np.array_equal(np.asarray(got), np.asarray(getattr(functional, adjust)(IMAGE, factor)))


def test_jitter_takes_every_order():
    orders = {tuple(o.name for o in draw_color_jitter(rng(s), (0.4, 0.4, 0.4, 0.0))) for s in range(300)}
    assert len(orders) == 6
    assert all(sorted(names) == ["Brightness", "Color", "Contrast"] for names in orders)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
@pytest.mark.parametrize("count", [1, 3])
def test_erasing(mode, count):
    shares = []
    for seed in range(300):
        x = np.full((3, 60, 80), 100, np.float32)
        erase(x, erased_rectangles(60, 80, rng(seed), mode, count))
        erased = x[0] != 100
        assert np.array_equal(erased, x[1] != 100)
        assert np.array_equal(erased, x[2] != 100)
        assert erased.any()
        values = x[:, erased]
        if mode == "const":
            assert (values == 0).all()
        else:
            per_channel = [len(np.unique(v)) for v in values]
            assert max(per_channel) <= count if mode == "rand" else min(per_channel) > 0.9 * erased.sum()
        if mode == "pixel" and erased.sum() > 300:
            assert abs(values.mean()) < 0.3
            assert 0.8 < values.std() < 1.2
        shares.append(erased.mean())
        if count == 1:
            rows, columns = np.flatnonzero(erased.any(1)), np.flatnonzero(erased.any(0))
            assert (
                erased.sum()
                == len(rows) * len(columns)
                == np.ptp(rows + 0) * np.ptp(columns) + np.ptp(rows) + np.ptp(columns) + 1
            )
            assert 0.25 < len(rows) / len(columns) < 4
    assert max(shares) < 0.36
    if count == 1:
        assert min(shares) > 0.015
        assert abs(np.mean(shares) - (0.02 + 1 / 3) / 2) < 0.02
