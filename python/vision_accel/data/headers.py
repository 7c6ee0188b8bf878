# SPDX-License-Identifier: Apache-2.0
"""What an encoded image says of itself before it is decoded, and whether all decoders agree on it."""

import re
import struct
import zlib

Size = tuple[int, int]

_SOF = {0xC0, 0xC1, 0xC2}  # baseline, extended and progressive JPEG with Huffman codes
_BETWEEN = {0xC4, 0xDA, 0xDB, 0xDD, 0xFE}  # segments that may follow a scan
_HEADER = {*_SOF, 0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # ends the entropy-coded bytes of a scan
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"tIME", b"bKGD", b"iCCP"}


def plain_size(data: bytes) -> Size | None:
    """(height, width) of an image that other decoders read as Pillow does; None for all others.

    Plain are whole 8-bit JPEG files, grey or colour, of which the EXIF orientation is 1 to 8, and whole
    8-bit RGB PNG files. Structure is checked, so a truncated or overwritten file is not plain; nothing is
    decoded. The size is that of the upright image.
    """
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg(data)
        if data[:8] == _PNG:
            return _png(data)
    except (IndexError, struct.error):
        pass
    return None


def _jpeg(data: bytes) -> Size | None:
    size, orientation, pos = None, 1, 2
    while data[pos] == 0xFF and data[pos + 1] in _HEADER:
        marker, length = data[pos + 1], int.from_bytes(data[pos + 2 : pos + 4], "big")
        if marker in _SOF:
            precision, h, w, components = struct.unpack_from(">BHHB", data, pos + 4)
            if size is not None or precision != 8 or components not in {1, 3} or not h * w:
                return None
            size = h, w
        elif marker == 0xE1:
            segment = data[pos + 4 : pos + 2 + length]
            if segment[:6] == b"Exif\0\0":
                orientation *= _orientation(segment[6:])  # of two, one must be 1
            elif b"rientation" in segment:
                return None  # XMP, which Pillow obeys
        pos += 2 + length
    if size is None or not 1 <= orientation <= 8 or data[pos : pos + 2] != b"\xff\xda":
        return None
    end = len(data) - 2
    while pos < end:
        if data[pos + 1] not in _BETWEEN:
            return None
        scan = data[pos + 1] == 0xDA
        pos += 2 + int.from_bytes(data[pos + 2 : pos + 4], "big")
        if scan:
            found = _MARKER.search(data, pos, end)
            pos = found.start() if found else end
    if pos != end or data[end:] != b"\xff\xd9":
        return None
    return size if orientation < 5 else (size[1], size[0])


def _orientation(exif: bytes) -> int:
    """The orientation in the first directory of a TIFF structure, 1 if there is none, 0 if it is odd."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 0
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    found = 1
    for i in range(count):
        tag, kind, number, value = struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * i)
        if tag == 0x0112:
            found = value if (kind, number) == (3, 1) else 0
    return found


def _png(data: bytes) -> Size | None:
    w, h, depth, colour, compression, filters, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if (depth, colour, compression, filters, interlace) != (8, 2, 0, 0, 0) or not h * w:
        return None
    pos, kind = 8, b""
    view = memoryview(data)
    while pos < len(data):
        (length,) = struct.unpack_from(">I", data, pos)
        kind, end = data[pos + 4 : pos + 8], pos + 8 + length
        if kind not in _PNG_CHUNKS or zlib.crc32(view[pos + 4 : end]) != int.from_bytes(
            data[end : end + 4], "big"
        ):
            return None
        pos = end + 4
    return (h, w) if kind == b"IEND" and pos == len(data) else None
