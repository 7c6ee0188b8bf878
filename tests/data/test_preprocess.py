# SPDX-License-Identifier: Apache-2.0
"""Recipes: equal to the reference pipelines bit for bit, and through every format and back."""

import dataclasses
import io
from functools import cache

import numpy as np
import pytest
from PIL import Image

import vision_accel as va
from tests import reference_libs
from vision_accel.data.images import ImageError
from vision_accel.data.preprocess import Preprocess

# [h, w]: odd margins on either axis, both orientations, smaller than the target, extreme, exact.
SIZES = [
    (375, 500),
    (500, 375),
    (333, 227),
    (224, 224),
    (225, 224),
    (231, 352),
    (100, 61),
    (1, 9),
    (700, 130),
]


@cache
def picture(h, w, mode="RGB"):
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (h, w, channels) if channels > 1 else (h, w)
    return Image.fromarray(np.random.default_rng(h * w).integers(0, 256, shape, dtype=np.uint8))


def assert_same(recipe, reference, sizes=SIZES):
    for size in sizes:
        image = picture(*size)
        expected, got = np.asarray(reference(image)), recipe(image)
        assert got.dtype == expected.dtype == np.float32
        assert np.array_equal(got, expected), f"{size}: {np.abs(got - expected).max()}"


def hf(name, **options):
    transformers = reference_libs.transformers()
    processor = getattr(transformers, name)(**options)
    return processor, lambda image: processor(image, return_tensors="np")["pixel_values"][0]


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ViTImageProcessorPil", {}),
        ("ViTImageProcessorPil", {"size": {"height": 97, "width": 131}, "resample": 3}),
        ("ViTImageProcessorPil", {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}),
        ("ViTImageProcessorPil", {"do_normalize": False}),
        ("ViTImageProcessorPil", {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [60.0] * 3}),
        (
            "ViTImageProcessorPil",
            {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
        ),
        ("DeiTImageProcessorPil", {}),
        ("DeiTImageProcessorPil", {"crop_size": {"height": 301, "width": 257}}),
        ("CLIPImageProcessorPil", {}),
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 97}, "crop_size": {"height": 96, "width": 90}}),
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 50}, "crop_size": {"height": 71, "width": 64}}),
        ("CLIPImageProcessorPil", {"do_resize": False}),
        ("SiglipImageProcessorPil", {}),
        ("BitImageProcessorPil", {"size": {"shortest_edge": 256}}),
    ],
)
def test_equals_transformers(name, options):
    processor, reference = hf(name, **options)
    recipe = Preprocess.from_hf(processor.to_dict())
    assert_same(recipe, reference)
    # What we write, transformers reads and carries out in the same way.
    written = recipe.to_hf()
    assert Preprocess.from_hf(written) == recipe
    kind = written.pop("image_processor_type") + "Pil"
    assert_same(recipe, hf(kind, **written)[1], SIZES[:4])


@pytest.mark.parity
@pytest.mark.parametrize("mode", ["RGBA", "LA", "L"])
def test_transparency_as_in_transformers(mode):
    processor, reference = hf("CLIPImageProcessorPil")
    image = picture(240, 300, mode)
    assert np.array_equal(Preprocess.from_hf(processor.to_dict())(image), reference(image))


def timm_transform(**config):
    timm = reference_libs.timm()
    data = timm.data.resolve_data_config(pretrained_cfg=config)
    transform = timm.data.create_transform(**data, is_training=False)
    return lambda image: transform(image).numpy()


@pytest.mark.parity
@pytest.mark.parametrize(
    "config",
    [
        {"num_classes": 10},
        {"crop_pct": 0.9, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        {"crop_pct": 1.0, "input_size": (3, 384, 384)},
        {"crop_pct": 0.95, "input_size": (3, 97, 131)},
        {"crop_mode": "squash", "crop_pct": 1.0},
        {"crop_mode": "squash", "crop_pct": 0.875, "input_size": (3, 97, 131), "interpolation": "bilinear"},
        {"crop_mode": "border", "crop_pct": 1.0},
        {"crop_mode": "border", "crop_pct": 0.9, "input_size": (3, 97, 131)},
        {"crop_mode": "squash", "crop_pct": 1.2},
        {"interpolation": "lanczos"},
        {"interpolation": "nearest"},
    ],
    ids=str,
)
def test_equals_timm(config):
    recipe = Preprocess.from_timm(config)
    sizes = [s for s in SIZES if s != (1, 9) or config.get("crop_mode") != "border"]  # torchvision: 0 rows
    assert_same(recipe, timm_transform(**config), sizes)
    written = recipe.to_timm()
    assert Preprocess.from_timm(written) == recipe
    assert_same(recipe, timm_transform(**written), SIZES[:4])


@pytest.mark.parity
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"size": 97, "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        {"size": [97, 131], "interpolation": "bilinear"},
        {"size": (97, 131), "resize_mode": "squash"},
        {"size": 224, "resize_mode": "longest"},
        {"size": (97, 131), "resize_mode": "longest", "fill_color": 127},
        {"interpolation": "random"},
    ],
    ids=str,
)
def test_equals_open_clip(config):
    reference_libs.timm()  # declares torchvision's operators
    transform = pytest.importorskip("open_clip.transform")
    recipe = Preprocess.from_open_clip(config)

    def reference(c):
        size = c.get("size", 224)
        cfg = transform.PreprocessCfg(**c | {"size": tuple(size) if isinstance(size, list) else size})
        pipeline = transform.image_transform_v2(cfg, is_train=False)
        return lambda image: pipeline(image).numpy()

    sizes = [s for s in SIZES if s != (1, 9) or config.get("resize_mode") != "longest"]
    assert_same(recipe, reference(config), sizes)
    written = recipe.to_open_clip()
    assert Preprocess.from_open_clip(written) == recipe
    assert_same(recipe, reference(written), SIZES[:4])


def test_processor_config_and_old_names():
    clip = Preprocess.from_hf(
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224}
    )
    assert clip == Preprocess.from_hf({"image_processor": {"image_processor_type": "CLIPImageProcessorFast"}})
    assert (clip.resize, clip.size, clip.interpolation, clip.resize_to) == (
        "shortest",
        (224, 224),
        "bicubic",
        None,
    )
    vit = Preprocess.from_hf({"feature_extractor_type": "ViTFeatureExtractor", "size": 384, "resample": 2})
    assert (vit.resize, vit.size, vit.interpolation) == ("squash", (384, 384), "bilinear")


def test_timm_test_size():
    config = {
        "input_size": (3, 224, 224),
        "crop_pct": 0.9,
        "test_input_size": (3, 288, 288),
        "test_crop_pct": 1.0,
    }
    assert Preprocess.from_timm(config).size == (224, 224)
    assert Preprocess.from_timm(config).resize_to == (248, 248)
    larger = Preprocess.from_timm(config, test_size=True)
    assert (larger.size, larger.resize_to) == ((288, 288), None)


VIT = {"image_processor_type": "ViTImageProcessor"}
CLIP = {"image_processor_type": "CLIPImageProcessor"}


@pytest.mark.parametrize(
    ("read", "config", "message"),
    [
        ("hf", VIT | {"sharpen": 1, "blur": 2}, "unknown keys blur, sharpen"),
        ("hf", {}, "image_processor_type must be one of ViTImageProcessor, .*, got none"),
        ("hf", {"image_processor_type": "SamImageProcessor"}, "got SamImageProcessor"),
        ("hf", VIT | {"feature_extractor_type": "CLIPFeatureExtractor"}, "got CLIPFeatureExtractor and ViT"),
        ("hf", VIT | {"do_pad": True}, "do_pad = True is not supported"),
        ("hf", VIT | {"size": {"shortest_edge": 224}}, "images would differ in size"),
        ("hf", VIT | {"size": {"longest_edge": 224}}, "size must have shortest_edge, or height and width"),
        ("hf", VIT | {"do_center_crop": True}, "do_center_crop needs crop_size"),
        ("hf", CLIP | {"do_center_crop": False}, "images would differ in size"),
        ("hf", CLIP | {"crop_size": {"shortest_edge": 3}}, "crop_size must have height and width"),
        ("hf", VIT | {"resample": 9}, "resample must be one of .*, got 9"),
        ("hf", VIT | {"size": 0}, "size must be a number of pixels, got 0"),
        ("hf", VIT | {"image_std": [0.5, 0.5]}, "image_std must have 3 values"),
        ("hf", VIT | {"image_std": [0.5, 0.5, 0]}, "non-zero std"),
        ("hf", VIT | {"image_mean": {"a": 1}}, "image_mean must be a number, got {'a': 1}"),
        ("hf", VIT | {"resample": [3]}, r"resample must be one of .*, got \[3\]"),
        ("hf", VIT | {"size": float("inf")}, "size must be a number of pixels, got inf"),
        ("open_clip", {"resize_mode": ["crop"]}, r"resize_mode must be .*, got \['crop'\]"),
        ("timm", {"crop_ratio": 0.9}, "unknown key crop_ratio"),
        ("timm", {"input_size": (1, 28, 28)}, r"input_size must be \(3, height, width\), got \(1, 28, 28\)"),
        ("timm", {"crop_mode": "corner"}, "crop_mode must be one of center, squash, border, got 'corner'"),
        ("timm", {"crop_pct": -1}, "crop_pct must be positive"),
        ("timm", {"interpolation": "random"}, "interpolation must be one of .*, got 'random'"),
        ("open_clip", {"resize": "shortest"}, "unknown key resize"),
        ("open_clip", {"mode": "L"}, "mode must be RGB"),
        ("open_clip", {"resize_mode": "crop"}, "resize_mode must be shortest, longest or squash, got 'crop'"),
        ("open_clip", {"interpolation": "lanczos"}, "got 'lanczos'"),
        ("open_clip", {"size": [1, 2, 3]}, "size must be a number or"),
    ],
)
def test_what_cannot_be_honoured_is_named(read, config, message):
    with pytest.raises(ValueError, match=message):
        getattr(Preprocess, f"from_{read}")(config)


@pytest.mark.parametrize(
    ("recipe", "format_", "message"),
    [
        (Preprocess(resize="longest"), "hf", "cannot express resize = 'longest'"),
        (Preprocess(crop_offset="round"), "hf", "cannot express crop_offset = 'round'"),
        (Preprocess(crop_offset="floor", fill=(1, 1, 1)), "hf", "fill"),
        (Preprocess(crop_offset="floor"), "timm", "crop_offset = 'floor'"),
        (Preprocess(rescale=1.0), "timm", "rescale = 1.0"),
        (Preprocess(alpha="white"), "open_clip", "alpha = 'white'"),
        (Preprocess(resize="none"), "timm", "resize = 'none'"),
        (Preprocess(size=(100, 50), resize_to=(100, 100)), "timm", "no crop_pct"),
        (Preprocess(resize_to=(256, 256)), "open_clip", "resize"),
        (Preprocess(interpolation="box"), "open_clip", "interpolation"),
        (Preprocess(fill=(1, 2, 3)), "timm", "fill"),
    ],
)
def test_what_cannot_be_written_is_named(recipe, format_, message):
    with pytest.raises(ValueError, match=message):
        getattr(recipe, f"to_{format_}")()


@pytest.mark.parametrize(
    "change",
    [
        {"size": (0, 5)}, {"size": (5,)}, {"resize_to": (1.5, 2)}, {"resize": "fit"}, {"std": (0, 1, 1)},
        {"mean": (1, 1)}, {"crop_offset": "ceil"}, {"alpha": "black"}, {"rescale": float("nan")},
        {"interpolation": "cubic"},
    ],
    ids=str,
)  # fmt: skip
def test_bad_recipe(change):
    with pytest.raises(ValueError, match=r"Preprocess|normalization_table"):
        Preprocess(**change)


def test_batch_equals_single_images():
    recipe = Preprocess(size=(50, 60), resize="longest", fill=(1, 2, 3))
    images = [picture(40 + i, 90 - i) for i in range(7)]
    alone = np.stack([recipe(image) for image in images])
    for threads in (0, 1, 3):
        assert np.array_equal(recipe.batch(images, threads), alone)
    assert recipe.batch([]).shape == (0, 3, 50, 60)
    file = io.BytesIO(b"nonsense")
    with pytest.raises(ImageError, match="<8 bytes>"):
        recipe.batch([*images, file.getvalue()], 2)


def test_recipe_is_a_value():
    recipe = Preprocess()
    assert recipe == Preprocess()
    assert hash(recipe) == hash(Preprocess())
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.size = (1, 1)
    assert Preprocess(**dataclasses.asdict(recipe)) == recipe


def test_public_names():
    assert va.data.Preprocess is Preprocess
    assert issubclass(va.data.ImageError, ValueError)
    assert va.data.load_image(np.zeros((2, 3, 3), np.uint8)).shape == (2, 3, 3)
    with pytest.raises(AttributeError, match="has no attribute 'Preproces'"):
        _ = va.data.Preproces
