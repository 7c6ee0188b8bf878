# SPDX-License-Identifier: Apache-2.0
import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from vision_accel.data.images import MAX_PIXELS, ImageError, load_image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (37, 51, 3), dtype=np.uint8)


def encode(image, format_, **options):
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


PNG = encode(Image.fromarray(RGB), "PNG")
JPEG = encode(Image.fromarray(RGB), "JPEG")


def test_every_kind_of_source(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)

    class Pipe(io.RawIOBase):  # readable, not seekable
        def __init__(self):
            self.rest = io.BytesIO(PNG)

        def readable(self):
            return True

        def readinto(self, b):
            return self.rest.readinto(b)

    with path.open("rb") as file:
        sources = [
            *(path, str(path), PNG, bytearray(PNG), memoryview(PNG), io.BytesIO(PNG), file, Pipe()),
            *(Image.open(path), Image.fromarray(RGB), RGB),
            *(torch.from_numpy(RGB), torch.from_numpy(RGB).permute(2, 0, 1)),
        ]
        for source in sources:
            pixels = load_image(source)
            assert pixels.dtype == np.uint8
            assert np.array_equal(pixels, RGB), type(source)
        assert not file.closed


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"],
)
def test_modes_convert_as_pillow_does(mode):
    source = Image.fromarray(RGB)
    image = source.convert(mode) if mode not in {"I", "F", "I;16", "RGBX", "LAB"} else None
    if image is None:
        size = Image.new(mode, (1, 1)).tobytes()
        image = Image.frombytes(mode, (9, 7), RNG.integers(0, 256, 63 * len(size), dtype=np.uint8).tobytes())
        if mode == "F":
            image = Image.fromarray(RNG.normal(128, 200, (7, 9)).astype(np.float32))
    assert np.array_equal(load_image(image), np.asarray(image.convert("RGB")))


def test_16_bit_grey_is_clipped():
    values = np.array([[0, 7, 255, 256, 65535]], np.uint16)
    for format_ in ("PNG", "TIFF"):
        data = encode(Image.fromarray(values), format_)
        assert load_image(data)[0, :, 0].tolist() == [0, 7, 255, 255, 255]


def test_palette_with_transparency():
    image = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    expected = np.asarray(image.convert("RGB"))
    for transparency in (3, bytes(range(0, 256, 16))):
        data = encode(image, "PNG", transparency=transparency)
        assert np.array_equal(load_image(data), expected)  # and Pillow's warning is not raised
    white = load_image(encode(image, "PNG", transparency=0), alpha="white")
    hidden = np.asarray(image) == 0
    assert (white[hidden] == 255).all()
    assert np.array_equal(white[~hidden], expected[~hidden])


def test_alpha():
    rgba = np.dstack([RGB, RNG.integers(0, 256, RGB.shape[:2], dtype=np.uint8)])
    image = Image.fromarray(rgba)
    on_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    for source in (image, rgba, encode(image, "PNG"), torch.from_numpy(rgba)):
        assert np.array_equal(load_image(source), RGB)
        assert np.array_equal(load_image(source, alpha="white"), np.asarray(on_white))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for format_, lossless in (("PNG", True), ("WEBP", True), ("JPEG", False), ("TIFF", True)):
        options = {"lossless": True} if format_ == "WEBP" else {}
        data = encode(Image.fromarray(RGB), format_, exif=exif, **options)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
        assert np.array_equal(load_image(data), expected), format_
        assert expected.shape[0] == (51 if orientation > 4 else 37)
        if lossless and orientation == 1:
            assert np.array_equal(expected, RGB)


def test_broken_exif_is_ignored():
    data = encode(Image.fromarray(RGB), "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert np.array_equal(load_image(data), RGB)
    exif = Image.Exif()
    exif[0x0112] = 77
    assert np.array_equal(load_image(encode(Image.fromarray(RGB), "PNG", exif=exif)), RGB)


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(format_):
    frames = [Image.new("RGB", (8, 5), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = encode(frames[0], format_, save_all=True, append_images=frames[1:], **options)
    assert (load_image(data) == (255, 0, 0)).all()


def test_array_shapes():
    grey = RGB[..., 0]
    for source in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert np.array_equal(load_image(source), np.dstack([grey] * 3))
    square = RNG.integers(0, 256, (3, 5, 3), dtype=np.uint8)  # ambiguous: torch puts channels first
    assert np.array_equal(load_image(torch.from_numpy(square)), square.transpose(1, 2, 0))
    assert load_image(np.zeros((1, 1), np.uint8)).shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (RGB.astype(np.float32) / 255, r"numpy array: must be uint8, got float32; scale it to \[0, 255\]"),
        (RGB.astype(np.int64), "numpy array: must be uint8, got int64$"),
        (RGB.transpose(2, 0, 1), r"must be \[h, w\] or \[h, w, 1 \| 3 \| 4\], got \[3, 37, 51\]"),
        (RGB[..., :2], "must be"),
        (RGB[None], "must be"),
        (RGB[:0], "has no pixels"),
        (np.zeros((0, 0), np.uint8), "has no pixels"),
        (torch.rand(3, 4, 4), "torch tensor: must be uint8, got float32"),
        (torch.rand(3, 4, 4).bfloat16(), "torch tensor: must be uint8, got torch.bfloat16"),
        (b"", "<0 bytes>: empty file"),
        (b"GIF89a", "<6 bytes>"),
        (b"<svg></svg>", "<11 bytes>: not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
        ("no/such/file.jpg", "no/such/file.jpg: no such file or directory"),
        (".", "is a directory"),
    ],
)
def test_bad_sources(source, message):
    with pytest.raises(ImageError, match=message):
        load_image(source)
    assert issubclass(ImageError, ValueError)


@pytest.mark.parametrize("source", [None, 3, [RGB], {"path": "a"}])
def test_what_is_no_source(source):
    with pytest.raises(TypeError, match="source must be a path, bytes"):
        load_image(source)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_truncated_files(tmp_path, format_):
    data = encode(Image.fromarray(RGB), format_)
    path = tmp_path / "cut.img"
    for share in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ImageError, match=r"cut\.img: .+"):
            load_image(path)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "ICO", "TGA", "JPEG2000"])
def test_corrupt_files_raise_nothing_else(format_):
    data = bytearray(encode(Image.fromarray(RGB), format_))
    rng = np.random.default_rng(1)
    for _ in range(150):
        broken = bytearray(data)
        for _ in range(int(rng.integers(1, 8))):
            broken[int(rng.integers(min(len(broken), 400)))] = int(rng.integers(256))
        with contextlib.suppress(ImageError):
            pixels = load_image(bytes(broken), max_pixels=10**6)
            assert pixels.ndim == 3
            assert pixels.shape[0] * pixels.shape[1] <= 10**6


def png_header(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def jpeg_header(width, height):
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


@pytest.mark.parametrize("make", [png_header, jpeg_header])
@pytest.mark.parametrize("side", [9460, 14000, 65500])
def test_bombs_are_refused_from_the_header(make, side, monkeypatch):
    def no_decoding(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_decoding)
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match=r"pixels"):
        load_image(make(side, side))
    assert limit == Image.MAX_IMAGE_PIXELS


def test_limit_can_be_set():
    assert MAX_PIXELS == 89_478_485
    assert load_image(PNG, max_pixels=37 * 51).shape == (37, 51, 3)
    for source in (PNG, Image.open(io.BytesIO(PNG))):
        with pytest.raises(ImageError, match="51 x 37 pixels are more than the limit of 1886"):
            load_image(source, max_pixels=37 * 51 - 1)


def test_draft_is_opt_in():
    large = encode(Image.fromarray(RNG.integers(0, 256, (400, 600, 3), dtype=np.uint8)), "JPEG")
    assert load_image(large).shape == (400, 600, 3)
    assert load_image(large, draft=(100, 100)).shape == (100, 150, 3)
    assert load_image(large, draft=(101, 100)).shape == (200, 300, 3)
    assert load_image(PNG, draft=(10, 10)).shape == (37, 51, 3)


def test_source_is_not_changed():
    image = Image.fromarray(RGB).convert("P")
    image.info["transparency"] = bytes(256)
    before = image.tobytes()
    load_image(image)
    assert (image.mode, image.tobytes(), image.info["transparency"]) == ("P", before, bytes(256))
