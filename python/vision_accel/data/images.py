# SPDX-License-Identifier: Apache-2.0
"""Any image source -> RGB pixels, safely. Pillow decodes."""

import io
import os
import sys
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vision_accel.data.source import MAX_PIXELS
from vision_accel.ops.resample import pillow_pixels

try:
    import simplejpeg  # libjpeg-turbo, as in Pillow, with less around it
except ImportError:
    simplejpeg = None

UInt8 = NDArray[np.uint8]
Alpha = Literal["drop", "white"]

_MAX_TURBO = 1 << 28  # bytes of a JPEG that are read at once

# Formats that hold pixels. The others that Pillow opens are left out: some run other programs (EPS).
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "PPM", "JPEG2000", "AVIF", "HEIF", "ICO", "TGA"),
    *("DIB", "PCX", "SGI", "QOI", "DDS", "ICNS"),
)

# What undoes each value of EXIF's Orientation tag.
_ORIENTATION_TAG = 0x0112
_TURNED = {5, 6, 7, 8}  # height and width change places
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """An image cannot be used. The message names the file and what is wrong with it."""


def load_image(
    source: Any,
    *,
    max_pixels: int = MAX_PIXELS,
    alpha: Alpha = "drop",
    draft: tuple[int, int] | None = None,
) -> UInt8:
    """Read an image as RGB.

    The result equals ``PIL.Image.open(source).convert("RGB")`` after its EXIF orientation is applied:
    16-bit grey values above 255 become 255 (Pillow clips, it does not scale), grey is repeated, palettes,
    CMYK and other colour spaces are converted, of an animation the first frame is taken.

    Args:
        source: a path, the bytes of a file, a binary file object, a ``PIL.Image.Image``, a uint8 numpy
            array [h, w] or [h, w, 1 | 3 | 4], or a uint8 torch tensor, which may also be [1 | 3 | 4, h, w].
        max_pixels: larger images are refused when their header has been read. Pillow's own limit,
            ``PIL.Image.MAX_IMAGE_PIXELS``, applies too and is never changed.
        alpha: "drop" ignores transparency, as ``convert("RGB")`` does, and with it torchvision, timm and
            open_clip; "white" puts the image on white, as transformers' ``convert_to_rgb`` does.
        draft: (height, width) of the upright image. A JPEG may then be decoded at 1/2, 1/4 or 1/8 of its
            size, but not smaller than this: faster, and not the same pixels.

    Returns:
        [h, w, 3] uint8. May be a read-only view of the source's memory, with 4-byte pixels.

    Raises:
        ImageError: the source is missing, broken, truncated, too large or of a kind that is not supported.
        TypeError: the source is no image source.
    """
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or "PIL image"
        return _decode(source, name, max_pixels, alpha, None)
    if isinstance(source, np.ndarray):
        return _from_array(source, "numpy array", alpha)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.Tensor):
        return _from_tensor(source, alpha)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open(io.BytesIO(source), f"<{len(source)} bytes>", max_pixels, alpha, draft)
    if isinstance(source, (str, os.PathLike)):
        return _open(source, os.fspath(source), max_pixels, alpha, draft)
    if hasattr(source, "read"):
        name = str(getattr(source, "name", "<file object>"))
        seekable = hasattr(source, "seek") and getattr(source, "seekable", lambda: True)()
        file = source if seekable else io.BytesIO(source.read())
        return _open(file, name, max_pixels, alpha, draft)
    raise TypeError(
        "load_image: source must be a path, bytes, a file object, a PIL image, a numpy array or a torch"
        f" tensor, got {type(source).__name__}"
    )


def _open(
    file: str | os.PathLike[str] | IO[bytes],
    name: str,
    max_pixels: int,
    alpha: Alpha,
    draft: tuple[int, int] | None,
) -> UInt8:
    Image.init()
    formats = [f for f in _FORMATS if f in Image.OPEN]
    try:
        image = Image.open(file, formats=formats)
    except UnidentifiedImageError as error:
        what = "not an image of a known format" if _has_content(file) else "empty file"
        raise ImageError(f"{name}: {what}") from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ImageError(f"{name}: {(error.strerror or str(error)).lower()}") from error
    except Exception as error:  # a broken file can make a decoder raise anything
        raise ImageError(f"{name}: {_reason(error)}") from error
    with image:
        return _decode(image, name, max_pixels, alpha, draft)


def _has_content(file: str | os.PathLike[str] | IO[bytes]) -> bool:
    if isinstance(file, (str, os.PathLike)):
        return Path(file).stat().st_size > 0
    file.seek(0)
    return bool(file.read(1))


def _decode(
    image: Image.Image, name: str, max_pixels: int, alpha: Alpha, draft: tuple[int, int] | None
) -> UInt8:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{name}: {width} x {height} pixels are more than the limit of {max_pixels}")
    try:
        if draft is not None:
            height, width = draft
            turned = image.getexif().get(_ORIENTATION_TAG) in _TURNED
            image.draft(image.mode, (height, width) if turned else (width, height))
        elif (pixels := _turbo(image)) is not None:
            return pixels
        image.load()
        return pillow_pixels(_to_rgb(_upright(image), alpha))
    except Exception as error:  # as above
        raise ImageError(f"{name}: {_reason(error)}") from error


def _turbo(image: Image.Image) -> UInt8 | None:
    """The pixels of a plain JPEG, the same as Pillow's; None leaves everything unusual to Pillow."""
    file = getattr(image, "fp", None)
    if simplejpeg is None or image.format != "JPEG" or image.mode != "RGB" or file is None:
        return None
    try:
        if image.getexif().get(_ORIENTATION_TAG, 1) != 1:
            return None
        file.seek(0)
        pixels: UInt8 = simplejpeg.decode_jpeg(file.read(_MAX_TURBO), "RGB", strict=True)
    except Exception:  # Pillow decides whether the file can be used, and says what is wrong with it
        return None
    return pixels if pixels.shape == (image.height, image.width, 3) else None


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says; broken EXIF data is ignored, as viewers do."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:
        return image
    return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image


def _to_rgb(image: Image.Image, alpha: Alpha) -> Image.Image:
    transparent = "A" in image.getbands() or image.info.get("transparency") is not None
    if alpha == "white" and transparent:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode == "RGB":
        return image
    if isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours; straight to RGB, Pillow warns
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "more pixels than PIL.Image.MAX_IMAGE_PIXELS allows"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    return f"broken image: {error}" if str(error) else f"broken image: {type(error).__name__}"


def _from_array(pixels: NDArray[Any], name: str, alpha: Alpha) -> UInt8:
    if pixels.dtype != np.uint8:
        hint = "; scale it to [0, 255] and convert it" if pixels.dtype.kind == "f" else ""
        raise ImageError(f"{name}: must be uint8, got {pixels.dtype}{hint}")
    shape = list(pixels.shape)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in {1, 3, 4}:
        raise ImageError(f"{name}: must be [h, w] or [h, w, 1 | 3 | 4], got {shape}")
    if pixels.size == 0:
        raise ImageError(f"{name}: has no pixels, got {shape}")
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 4 and alpha == "white":
        return pillow_pixels(_to_rgb(Image.fromarray(pixels), alpha))
    return pixels[..., :3]


def _from_tensor(tensor: Any, alpha: Alpha) -> UInt8:
    # [3, h, w] and [h, w, 3] are told apart by where the channels can be; a tie goes to torch's order.
    if tensor.ndim == 3 and tensor.shape[0] in {1, 3, 4}:
        tensor = tensor.permute(1, 2, 0)
    try:
        pixels = tensor.detach().cpu().numpy()
    except TypeError as error:  # a dtype that numpy does not have
        raise ImageError(f"torch tensor: must be uint8, got {tensor.dtype}") from error
    return _from_array(pixels, "torch tensor", alpha)
