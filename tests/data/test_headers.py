# SPDX-License-Identifier: Apache-2.0
import io
import struct

import numpy as np
import pytest
from PIL import Image

from vision_accel.data.headers import plain_size
from vision_accel.data.images import ImageError, load_image

RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8))


def encoded(image=RGB, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def orientation(value, order=">"):
    exif = Image.Exif()
    exif.endian = order
    exif[0x0112] = value
    return exif.tobytes()


PLAIN = {
    "jpeg": encoded(),
    "444": encoded(subsampling=0, quality=97),
    "progressive": encoded(progressive=True),
    "restarts": encoded(restart_marker_rows=1),
    "grey": encoded(RGB.convert("L")),
    "comment": encoded(comment=b"\xff\xd8 hello"),
    "1x1": encoded(RGB.resize((1, 1))),
    "1x4000": encoded(RGB.resize((1, 4000))),
    "png": encoded(kind="PNG"),
    "png-dpi": encoded(kind="PNG", dpi=(72, 72)),
    **{f"exif{v}{o}": encoded(exif=orientation(v, o)) for v in range(1, 9) for o in "<>"},
}
OTHERS = {
    "exif0": encoded(exif=orientation(0)),
    "exif9": encoded(exif=orientation(9)),
    "xmp": encoded(xmp=b'<x tiff:Orientation="6"/>'),
    "cmyk": encoded(RGB.convert("CMYK")),
    "palette": encoded(RGB.convert("P"), "PNG"),
    "alpha": encoded(RGB.convert("RGBA"), "PNG"),
    "grey-png": encoded(RGB.convert("L"), "PNG"),
    "16-bit": encoded(Image.fromarray(np.full((4, 5), 40000, np.uint16)), "PNG"),
    "png-exif": encoded(kind="PNG", exif=orientation(6)),
    "transparent-colour": encoded(kind="PNG", transparency=(1, 2, 3)),
    "gif": encoded(kind="GIF"),
    "webp": encoded(kind="WEBP"),
    "bmp": encoded(kind="BMP"),
    "tail": encoded() + b"more",
    "png-tail": encoded(kind="PNG") + b"more",
    "empty": b"",
    "text": b"hello",
    "start": b"\xff\xd8",
    "no-sof": b"\xff\xd8\xff\xda\0\2\xff\xd9",
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain(name):
    assert plain_size(PLAIN[name]) == load_image(PLAIN[name]).shape[:2]


@pytest.mark.parametrize("name", OTHERS)
def test_others(name):
    assert plain_size(OTHERS[name]) is None


@pytest.mark.parametrize("name", ["jpeg", "progressive", "png"])
def test_a_truncated_file_is_not_plain(name):
    data = PLAIN[name]
    assert not [n for n in range(len(data)) if plain_size(data[:n]) is not None]


def test_absurd_sizes_are_told_from_the_header():
    data = PLAIN["jpeg"]
    at = data.index(b"\xff\xc0") + 5
    assert plain_size(data[:at] + struct.pack(">HH", 60000, 65000) + data[at + 4 :]) == (60000, 65000)
    png = PLAIN["png"][:16] + struct.pack(">II", 1 << 30, 1 << 30) + PLAIN["png"][24:]
    assert plain_size(png) is None  # its checksum is wrong


def damaged(data, rng, first):
    data = bytearray(data)
    for at in rng.integers(first, len(data), rng.integers(1, 30)):
        data[at] = rng.integers(256)
    return bytes(data)


@pytest.mark.parametrize("name", ["jpeg", "progressive", "png", "exif6>", "restarts"])
def test_the_size_of_a_damaged_file_is_right_or_unknown(name):
    rng = np.random.default_rng(1)
    for _ in range(300):
        data = damaged(PLAIN[name], rng, 2)
        size = plain_size(data)
        try:
            shape = load_image(data).shape[:2]
        except ImageError:
            continue
        assert size in {None, shape}


@pytest.mark.parametrize("name", ["jpeg", "png", "restarts"])
def test_damage_to_the_pixels_that_pillow_refuses_is_seen(name):
    rng = np.random.default_rng(2)
    start = PLAIN[name].index(b"\xff\xda" if name != "png" else b"IDAT") + 20
    for _ in range(300):
        data = damaged(PLAIN[name], rng, start)
        if plain_size(data) is not None:
            load_image(data)
