# SPDX-License-Identifier: Apache-2.0
"""The pixels of every way to decode and to prepare an image, beside Pillow's.

Bounds: ``load_image``, and evaluation by ``Preprocess``, give Pillow's bytes, with the decoder of the
``turbo`` extra and without it. So does DALI on the CPU where it only decodes; where it resizes too, see
``DALI_BOUNDS``. With ``augment.decode=fast``, training images of large photographs differ by less than 3 grey
levels on average.
"""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from vision_accel.cli.bench_data import photograph
from vision_accel.data import augment, images
from vision_accel.data.augment import AugmentConfig
from vision_accel.data.images import load_image
from vision_accel.data.preprocess import Preprocess

SIZES = [(1, 1), (1, 4000), (4000, 1), (2, 3), (7, 8), (9, 17), (16, 16), (31, 64), (97, 143), (375, 500)]


def smooth(rng, height, width, channels):
    """Pixels with edges and gradients, of any size."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / a + c) + np.cos(y / b) for a, b, c in rng.uniform(2, 40, (channels, 3))]
    noise = rng.normal(0, 0.15, (height, width, channels))
    return np.clip((np.stack(waves, -1) + 2) / 4 * 255 + noise * 60, 0, 255).astype(np.uint8)


def encode(image, format_, **options):
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def exif(orientation):
    return b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HHI", orientation, 0, 0)


def make():
    """Name -> bytes of some hundreds of files."""
    rng = np.random.default_rng(0)
    files = {}
    for height, width in SIZES:
        image = Image.fromarray(smooth(rng, height, width, 3))
        grey, alpha = image.convert("L"), Image.fromarray(smooth(rng, height, width, 4))
        where = f"{height}x{width}"
        for sampling in (0, 1, 2):
            for quality in (30, 90):
                files[f"{where} jpeg 4:{sampling} q{quality}"] = encode(
                    image, "JPEG", subsampling=sampling, quality=quality
                )
            files[f"{where} progressive 4:{sampling}"] = encode(
                image, "JPEG", subsampling=sampling, progressive=True
            )
        files |= {f"{where} jpeg {mode}": encode(image.convert(mode), "JPEG") for mode in ("L", "CMYK", "1")}
        files |= {f"{where} jpeg orientation {o}": encode(image, "JPEG", exif=exif(o)) for o in range(1, 9)}
        files[f"{where} jpeg rgb"] = encode(image, "JPEG", keep_rgb=True)
        files[f"{where} jpeg restarts"] = encode(image, "JPEG", restart_marker_rows=1)
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
            files[f"{where} png {mode}"] = encode(alpha.convert(mode), "PNG")
        deep = np.asarray(grey).astype(np.uint16) * 3
        files[f"{where} png 16 bit"] = encode(Image.fromarray(deep), "PNG")
        files[f"{where} tiff 16 bit"] = encode(Image.fromarray(deep), "TIFF")
        files[f"{where} tiff CMYK"] = encode(image.convert("CMYK"), "TIFF")
        files[f"{where} webp"] = encode(image, "WEBP")
        files[f"{where} bmp"] = encode(image, "BMP")
        files[f"{where} animated gif"] = encode(
            image.convert("P"), "GIF", save_all=True, append_images=[grey.convert("P")]
        )
        files[f"{where} palette png"] = encode(image.convert("P"), "PNG", transparency=3)
    data = pytest.importorskip("sklearn.datasets").load_sample_images()
    for name, pixels in zip(data.filenames, data.images, strict=True):
        photo = Image.fromarray(pixels)
        for quality in (60, 95):
            files[f"{name} q{quality}"] = encode(photo, "JPEG", quality=quality)
        files[f"{name} progressive"] = encode(photo, "JPEG", progressive=True)
    files |= {f"photograph {i}": photograph(rng) for i in range(8)}
    return files


@pytest.fixture(scope="module")
def files():
    return make()


def pillow(data):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # as Pillow asks for
    return image.convert("RGB")


@pytest.mark.parametrize("decoder", ["turbo", "pillow"])
def test_decoded_pixels_are_pillows(files, decoder, monkeypatch):
    if decoder == "pillow":
        monkeypatch.setattr(images, "simplejpeg", None)
    elif images.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    assert len(files) > 300
    different = [
        n for n, data in files.items() if not np.array_equal(load_image(data), np.asarray(pillow(data)))
    ]
    assert not different


def test_the_quick_decoder_is_used_where_it_may_be(files, monkeypatch):
    if images.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    used = [name for name, data in files.items() if images._turbo(Image.open(io.BytesIO(data))) is not None]
    assert {n for n in files if "photograph" in n or "progressive" in n or " q90" in n} <= set(used)
    assert not [n for n in used if "CMYK" in n or "png" in n or "orientation 6" in n]


def test_a_truncated_jpeg_is_an_error_with_either_decoder(files, monkeypatch):
    whole = files["photograph 0"]
    cuts = [whole[: int(len(whole) * share)] for share in (0.02, 0.3, 0.7, 0.99)]
    messages = []
    for decoder in (images.simplejpeg, None):
        monkeypatch.setattr(images, "simplejpeg", decoder)
        for cut in cuts:
            with pytest.raises(images.ImageError, match=r"broken image|not an image") as error:
                load_image(cut)
            messages.append(str(error.value))
    assert messages[: len(cuts)] == messages[len(cuts) :]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_prepared_pixels_are_pillows(files, interpolation):
    recipe = Preprocess(
        size=(64, 64), resize_to=(72, 72), interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1)
    )
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    for name, data in files.items():
        image = pillow(data)
        h, w = recipe.resized_size(image.height, image.width)
        if min(image.size) < 2 or max(h, w) > 5000:
            continue  # 72 x 288000 pixels: Pillow would need a gigabyte
        (top, left, height, width), _ = recipe.window(h, w)
        expected = image.resize((w, h), method).crop((left, top, left + width, top + height))
        ours = np.rint(recipe(data) * 255).astype(np.uint8).transpose(1, 2, 0)
        assert np.array_equal(ours, np.asarray(expected)), name


class Memory:
    """Encoded images as a source."""

    def __init__(self, files):
        self.files, self.names = [*files.values()], [*files]
        self.labels = np.zeros(len(files), np.int64)

    def __len__(self):
        return len(self.files)

    def name(self, index):
        return self.names[index]

    def read(self, index):
        return self.files[index]


def of_dali(files, recipe, resize):
    """Differences from ``Preprocess`` in grey levels, [3, h, w] of each file."""
    pytest.importorskip("nvidia.dali", reason="DALI is for Linux on x86-64 and SBSA")
    import torch

    from vision_accel.data.dali import DaliOptions, create_loader
    from vision_accel.data.loader import EvalImages, collate_eval

    keys = [[*range(i, min(i + 64, len(files)))] for i in range(0, len(files), 64)]
    samples = EvalImages(Memory(files), recipe)
    options = DaliOptions(resize, threads=2)
    with create_loader(
        samples, keys, collate_eval, dali=options, batch_size=64, device=torch.device("cpu")
    ) as loader:
        got = torch.cat([batch.tensors["image"] for batch in loader]).numpy()
    return {n: np.abs(g - recipe(d)) * 255 for g, (n, d) in zip(got, files.items(), strict=True)}


def recipes(files, interpolation):
    """Two recipes, and the files for them."""
    how = {"interpolation": interpolation, "mean": (0, 0, 0), "std": (1, 1, 1), "size": (64, 64)}
    yield Preprocess(resize="squash", **how), files
    # Without those that Pillow would need a gigabyte for.
    yield Preprocess(resize_to=(72, 72), **how), {n: d for n, d in files.items() if "4000" not in n}


def test_pixels_of_dali_that_decodes(files):
    for recipe, some in recipes(files, "bicubic"):
        assert not [name for name, d in of_dali(some, recipe, "exact").items() if d.any()]


# How far DALI's own resizing may be from Pillow's, in grey levels: on average over all files; at most in a
# file; at most in a dithered black-and-white one. Nearest takes another of two equally near pixels.
DALI_BOUNDS = {
    "nearest": (0.35, 58, 255),
    "bilinear": (0.15, 16, 23),
    "bicubic": (0.25, 11, 31),
    "lanczos": (0.4, 21, 63),
}


@pytest.mark.parametrize("interpolation", DALI_BOUNDS)
def test_pixels_of_dali_that_resizes(files, interpolation):
    average, most, dithered = DALI_BOUNDS[interpolation]
    for recipe, some in recipes(files, interpolation):
        differences = of_dali(some, recipe, "dali")
        assert np.mean([d.mean() for d in differences.values()]) <= average
        bound = {n: dithered if n.endswith((" png 1", " jpeg 1")) else most for n in differences}
        assert not [n for n, d in differences.items() if d.max() > bound[n]]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("crop", ["random_resized", "random", "center"])
def test_fast_decoding_is_near(crop, orientation, monkeypatch):
    rng = np.random.default_rng(1)
    drafts = []
    monkeypatch.setattr(
        augment, "load_image", lambda *a, **k: drafts.append(load_image(*a, **k)) or drafts[-1]
    )
    plain = Image.open(io.BytesIO(photograph(rng, 800, 1100)))
    data = encode(plain, "JPEG", quality=90, exif=exif(orientation))
    recipe = Preprocess(size=(96, 96), mean=(0, 0, 0), std=(1, 1, 1))
    options = {"crop": crop, "scale": (0.3, 1.0), "erase": 0.5}
    exact, fast = (
        augment.train_transform(recipe, AugmentConfig(decode=d, **options)) for d in ("exact", "fast")
    )
    for seed in range(6):
        a, b = (f(data, np.random.default_rng(seed)) for f in (exact, fast))
        assert a.shape == b.shape == (3, 96, 96)
        assert np.abs(a - b).mean() * 255 < 3
    sizes = {max(d.shape) for d in drafts[1::2]}
    assert sizes <= {550, 275, 138}
    assert {max(d.shape) for d in drafts[::2]} == {1100}
    small = photograph(rng, 90, 80)  # nothing to save
    assert np.array_equal(*(f(small, np.random.default_rng(0)) for f in (exact, fast)))
