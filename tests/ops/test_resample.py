# SPDX-License-Identifier: Apache-2.0
"""Everything here is compared with ==: the op must equal Pillow and numpy bit for bit."""

import ctypes
import mmap
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from vision_accel import _C, ops
from vision_accel.ops.resample import INTERPOLATIONS
from vision_accel.testing import reference

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def picture(rng, h, w, channels=3):
    """Noise, half of the time black and white only: overshoot of the filters must clip."""
    if rng.random() < 0.5:
        return rng.integers(0, 256, (h, w, channels), dtype=np.uint8)
    return (rng.integers(0, 2, (h, w, channels)) * 255).astype(np.uint8)


def fractional_box(rng, h, w):
    left, right = np.sort(rng.uniform(0, w, 2))
    top, bottom = np.sort(rng.uniform(0, h, 2))
    if rng.random() < 0.3:
        left, top, right, bottom = np.floor(left), np.floor(top), np.ceil(right), np.ceil(bottom)
    return (left, top, max(right, left + 0.01), max(bottom, top + 0.01))


def check(image, size, **options):
    expected = reference.resample(image, size, **options)
    if (mean := options.pop("mean", None)) is not None:
        options["table"] = ops.normalization_table(mean, options.pop("std"))
    got = ops.resample(image, size, **options)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert np.array_equal(got, expected), (
        f"{image.shape} -> {size}, {options}: {(got != expected).sum()} differ"
    )


@pytest.mark.parametrize("seed", range(4))
def test_random_cases_equal_pillow(isa, seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        h, w, new_h, new_w = (int(n) for n in np.exp(rng.uniform(0, 5.3, 4)))
        image = picture(rng, h, w, int(rng.choice([1, 3, 4])))
        box = fractional_box(rng, h, w) if rng.random() < 0.4 else None
        name = str(rng.choice(list(INTERPOLATIONS)))
        top, left = int(rng.integers(new_h)), int(rng.integers(new_w))
        crop = (top, left, int(rng.integers(1, new_h - top + 1)), int(rng.integers(1, new_w - left + 1)))
        options = {"interpolation": name, "flip": bool(rng.random() < 0.3)}
        options |= {"crop": crop if rng.random() < 0.5 else None}
        if image.shape[2] == 3 and rng.random() < 0.5:
            options |= {"mean": MEAN, "std": STD}
        if box is not None and box[2] <= w and box[3] <= h:
            options["box"] = box
        check(image, (new_h, new_w), **options)


@pytest.mark.parametrize("name", INTERPOLATIONS)
@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((1, 1), (1, 1)),
        ((1, 1), (5, 7)),
        ((1, 37), (1, 5)),
        ((37, 1), (224, 224)),
        ((3000, 2), (3, 5)),
        ((2, 3000), (5, 3)),
        ((2, 3000), (5, 4000)),
        ((375, 500), (224, 299)),
        ((500, 300), (224, 224)),  # Pillow 13 resizes this one vertically first
        ((64, 64), (64, 64)),
        ((64, 64), (64, 31)),
        ((64, 64), (31, 64)),
    ],
    ids=str,
)
def test_sizes(isa, name, source, size):
    rng = np.random.default_rng(0)
    check(picture(rng, *source), size, interpolation=name)
    check(picture(rng, *source), size, interpolation=name, mean=MEAN, std=STD, flip=True)


def test_wide_image_is_swept_in_chunks(isa):
    rng = np.random.default_rng(0)
    for channels, size in ((1, (9, 9000)), (3, (7, 5000)), (4, (30, 100))):
        image = picture(rng, 40, 12000, channels)
        check(image, size)
        check(image, size, flip=True)


def test_smallest_boxes(isa):
    image = picture(np.random.default_rng(0), 20, 30)
    for box in ((0, 0, 1e-30, 1e-30), (29.9999, 5, 30, 5.0001), (0, 19.5, 30, 20)):
        check(image, (25, 40), box=box)


@pytest.mark.parametrize("rows", ["horizontal", "vertical"])
def test_threads_do_not_change_a_bit(isa, rows):
    rng = np.random.default_rng(0)
    image = picture(rng, 900, 1100)
    size = (600, 700) if rows == "horizontal" else (301, 1090)
    one = ops.resample(image, size, threads=1)
    assert np.array_equal(one, reference.resample(image, size))
    for threads in (2, 3, 5):
        assert np.array_equal(one, ops.resample(image, size, threads=threads))


def test_strided_sources(isa):
    rng = np.random.default_rng(0)
    rgbx = picture(rng, 61, 47, 4)
    large = picture(rng, 80, 90, 3)
    views = {
        "4-byte pixels": rgbx[..., :3],
        "a window": large[5:66, 7:54],
        "every second row": large[::2],
        "upside down": large[::-1],
        "columns reversed": large[:, ::-1],
        "channels first": rgbx.transpose(2, 0, 1)[:3].copy().transpose(1, 2, 0),
        "channels reversed": large[..., ::-1],
        "one channel of three": large[..., 1:2],
        "column": large[:, :1],
    }
    for name, view in views.items():
        expected = reference.resample(view, (33, 29))
        assert np.array_equal(ops.resample(view, (33, 29)), expected), name


@pytest.mark.skipif(sys.platform != "linux", reason="protects a page through libc")
def test_reads_nothing_beyond_the_last_pixel(isa):
    """The image ends where readable memory does; the last pixel of a 4-byte row has 3 bytes only."""
    libc, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
    memory = mmap.mmap(-1, 64 * page)
    readable = np.frombuffer(memory, np.uint8)[: 63 * page]
    assert libc.mprotect(ctypes.c_void_p(readable.ctypes.data + 63 * page), page, 0) == 0
    rng = np.random.default_rng(0)
    readable[:] = rng.integers(0, 256, readable.size, dtype=np.uint8)
    for _ in range(60):
        h, w, new_h, new_w = (int(n) for n in rng.integers(1, 90, 4))
        channels = int(rng.choice([1, 3, 4]))
        pixel = 4 if channels == 3 and rng.random() < 0.5 else channels
        tail = readable[readable.size - (h * w * pixel - (pixel - channels)) :]
        view = np.lib.stride_tricks.as_strided(tail, (h, w, channels), (w * pixel, pixel, 1))
        expected = reference.resample(view, (new_h, new_w))
        assert np.array_equal(ops.resample(view, (new_h, new_w)), expected)
    assert libc.mprotect(ctypes.c_void_p(readable.ctypes.data + 63 * page), page, 3) == 0


def test_layouts_and_out(isa):
    rng = np.random.default_rng(0)
    image = picture(rng, 50, 40)
    table = ops.normalization_table(MEAN, STD)
    u8 = ops.resample(image, (20, 30))
    assert np.array_equal(ops.resample(image, (20, 30), planar=True), u8.transpose(2, 0, 1))
    f32 = ops.resample(image, (20, 30), table=table)
    assert np.array_equal(ops.resample(image, (20, 30), table=table, planar=False), f32.transpose(1, 2, 0))
    canvas = np.full((3, 26, 38), 7, np.float32)
    out = canvas[:, 3:23, 5:35]
    assert ops.resample(image, (20, 30), table=table, out=out) is out
    assert np.array_equal(out, f32)
    canvas[:, 3:23, 5:35] = 7
    assert (canvas == 7).all()
    only_red = ops.resample(image, (20, 30), table=table[:1])
    assert np.array_equal(only_red, f32[:1])


def test_table_is_what_the_references_compute():
    """transformers rescales in float64; torchvision divides in float32: the same for 1/255."""
    table = ops.normalization_table(MEAN, STD)
    bytes_ = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    torchvision = bytes_.to(torch.float32).div(255).sub_(mean).div_(std)
    assert np.array_equal(table, torchvision[:, 0].numpy())
    halves = ops.normalization_table((0.5,), (0.5,), 1 / 127.5)
    expected = ((np.arange(256.0) * (1 / 127.5)).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)
    assert np.array_equal(halves[0], expected)


def test_tensors():
    rng = np.random.default_rng(0)
    image = picture(rng, 60, 47)
    table = ops.normalization_table(MEAN, STD)
    x = torch.from_numpy(image)
    for options in ({}, {"flip": True, "crop": (3, 4, 10, 12)}, {"box": (1.5, 2.25, 40, 50), "table": table}):
        got = ops.resample(x, (24, 31), **options)
        assert isinstance(got, torch.Tensor)
        assert np.array_equal(got.numpy(), ops.resample(image, (24, 31), **options))
    chw = x.permute(2, 0, 1).contiguous()
    assert np.array_equal(ops.resample(chw.permute(1, 2, 0), (9, 9)), ops.resample(image, (9, 9)))


def test_opcheck():
    x = torch.randint(0, 256, (12, 15, 3), dtype=torch.uint8)
    table = torch.tensor(ops.normalization_table(MEAN, STD))
    op = torch.ops.vision_accel.resample.default
    call = (3, [8, 9], [0.0, 0.0, 15.0, 12.0], [0, 0], False)
    torch.library.opcheck(op, (x, table, [3, 8, 9], *call, True, False, 0))
    torch.library.opcheck(op, (x, None, [8, 9, 3], *call, False, True, 0))


def test_compiles_whole():
    x = torch.randint(0, 256, (12, 15, 3), dtype=torch.uint8)
    compiled = torch.compile(
        lambda x: ops.resample(x, (5, 6)).float() + 1, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x), ops.resample(x, (5, 6)).float() + 1)


@pytest.mark.parametrize("size", [(37, 23), (1, 1), (300, 200)], ids=str)
def test_pillow_pixels_share_memory(size):
    rng = np.random.default_rng(0)
    image = Image.fromarray(picture(rng, *size))
    pixels = ops.pillow_pixels(image)
    assert np.array_equal(pixels, np.asarray(image))
    assert pixels.strides == (size[1] * 4, 4, 1)
    assert not pixels.flags.writeable
    expected = np.asarray(image).copy()
    del image
    assert np.array_equal(pixels, expected)  # the view keeps the memory alive
    assert np.array_equal(ops.resample(pixels, (11, 13)), reference.resample(expected, (11, 13)))


def test_pillow_pixels_of_an_image_in_several_blocks():
    rng = np.random.default_rng(0)
    image = Image.fromarray(picture(rng, 1200, 5000))
    pixels = ops.pillow_pixels(image)
    assert np.array_equal(pixels, np.asarray(image))
    assert pixels.strides == (5000 * 4, 4, 1)


def test_pillow_pixels_wants_rgb():
    with pytest.raises(ValueError, match="mode RGB, got L"):
        ops.pillow_pixels(Image.new("L", (2, 2)))


def test_arrow_arrays_of_another_kind_are_refused():
    with pytest.raises(TypeError, match="lists of 4 uint8"):
        _C.arrow_pixels(*Image.new("L", (3, 3)).__arrow_c_array__())
    with pytest.raises((ValueError, TypeError)):
        _C.arrow_pixels(None, None)


IMAGE = np.zeros((6, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": IMAGE.astype(np.float32)}, TypeError, "resample: image must be uint8, got float32"),
        ({"image": IMAGE.astype(np.uint16)}, TypeError, "is not supported"),
        ({"image": IMAGE[0]}, ValueError, r"image must be \[h, w, C\], got \[5, 3\]"),
        (
            {"image": IMAGE[:0]},
            ValueError,
            r"image must be \[h, w, 1 to 4\] with pixels in it, got \[0, 5, 3\]",
        ),
        ({"image": np.zeros((2, 2, 5), np.uint8)}, ValueError, "1 to 4"),
        ({"image": np.zeros((2, 2, 0), np.uint8)}, ValueError, "1 to 4"),
        ({"size": (0, 4)}, ValueError, r"height must be in \[1, 16777216\], got 0"),
        ({"size": (4, -1)}, ValueError, "must be of a sane size"),
        ({"size": (4, 20_000_000), "crop": (0, 0, 1, 1)}, ValueError, "width must be in"),
        ({"size": (1_000_000, 1_000_000)}, ValueError, "must be of a sane size"),
        ({"interpolation": "cubic"}, ValueError, "interpolation must be one of nearest, .*, got 'cubic'"),
        (
            {"box": (0, 0, 6, 6)},
            ValueError,
            r"non-empty part of the image \[6, 5\], got \(0.0+, 0.0+, 6.0+, 6.0+\)",
        ),
        ({"box": (-1, 0, 5, 6)}, ValueError, "non-empty part"),
        ({"box": (2, 2, 2, 4)}, ValueError, "non-empty part"),
        ({"box": (float("nan"), 0, 5, 6)}, ValueError, "non-empty part"),
        ({"box": (0, 0, 5)}, ValueError, "box must be"),
        ({"crop": (0, 1, 4, 4)}, ValueError, r"crop of the width must lie within \[0, 4\], got \[1, 5\]"),
        ({"crop": (-1, 0, 4, 4)}, ValueError, "crop of the height must lie within"),
        ({"table": np.zeros((4, 256), np.float32)}, ValueError, "more channels than the image"),
        ({"table": np.zeros((3, 255), np.float32)}, ValueError, r"table must be \[3, 256\], got \[3, 255\]"),
        ({"table": np.zeros((3, 256))}, TypeError, "table must be float32, got float64"),
        ({"out": np.zeros((4, 5, 3), np.uint8)}, ValueError, r"out must be \[4, 4, 3\], got \[4, 5, 3\]"),
        ({"out": np.zeros((4, 4, 3), np.float64)}, TypeError, "out must be"),
        ({"out": np.zeros((4, 4, 3), np.float32)}, ValueError, "table"),
        ({"out": np.zeros((4, 4, 6), np.uint8)[..., ::2]}, ValueError, "last axis of out must be contiguous"),
    ],
)
def test_bad_input(change, error, message):
    args = {"image": IMAGE, "size": (4, 4)} | change
    with pytest.raises(error, match=message):
        ops.resample(**args)
    if "out" not in change and change.get("image", IMAGE).dtype != np.uint16:
        args["image"] = torch.from_numpy(np.ascontiguousarray(args["image"]))
        with pytest.raises(error, match=message):
            ops.resample(**args)


def test_empty_crop():
    assert ops.resample(IMAGE, (4, 4), crop=(1, 1, 0, 2)).shape == (0, 2, 3)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.5, 0.5)), ((), ()), ((0.5,), (0.0,)), ((float("nan"),), (1.0,))]
)
def test_bad_normalisation(mean, std):
    with pytest.raises(ValueError, match="normalization_table"):
        ops.normalization_table(mean, std)
