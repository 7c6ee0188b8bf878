# SPDX-License-Identifier: Apache-2.0
"""Image resizing, cropping, mirroring and normalisation in one pass, bit-exact with Pillow.

Works on numpy arrays without torch; with torch installed, also on tensors, as a registered op.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import core  # type: ignore[attr-defined]

from vision_accel import _C

try:
    import torch
except ImportError:  # the numpy face needs no torch
    torch = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from torch import Tensor

# Pillow's numbers of its filters.
INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}

_PILLOW = tuple(int(n) for n in PIL.__version__.split(".")[:2])
_STRIP_BYTES = 2**19  # stays in the cache between the two copies
_MAX_OUTPUT = 2**31 - 1  # elements

UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]


def resample(
    image: Any,
    size: tuple[int, int],
    *,
    interpolation: str = "bicubic",
    box: Sequence[float] | None = None,
    crop: Sequence[int] | None = None,
    flip: bool = False,
    table: Any = None,
    planar: bool | None = None,
    out: Any = None,
    threads: int = 0,
) -> Any:
    """Resize an image as ``PIL.Image.resize`` does, bit for bit, then crop, mirror and normalise it.

    Only what the crop keeps is computed. The result is the same for any instruction set and number of
    threads. Channels are resized independently: for RGBA, Pillow multiplies colour by alpha first.

    Args:
        image: [h, w, C] uint8 with C <= 4, a numpy array or a tensor, of any strides. Rows of 3-byte
            and of 4-byte pixels (a view ``rgbx[..., :3]``) are read in place, others are copied.
        size: (height, width) of the whole resized image, in pixels.
        interpolation: "nearest", "box", "bilinear", "hamming", "bicubic" or "lanczos".
        box: (left, top, right, bottom), the part of the source to resize, in pixels; may be fractional.
        crop: (top, left, height, width), the part of the resized image to return; all of it by default.
        flip: mirror left-right, after the crop.
        table: [C, 256] float32, the output value of each byte value: see ``normalization_table``.
        planar: channels first. By default true with a table and false without one.
        out: numpy only: where to write, [C, H, W] if planar, else [H, W, C]; rows must be contiguous.
        threads: at most this many threads; 0 for all.

    Returns:
        uint8 without a table, float32 with one: [C, H, W] if planar, else [H, W, C].

    Raises:
        ValueError: an argument has a wrong shape or is out of range.
        TypeError: a dtype is wrong.

    Source: ``src/libImaging/Resample.c`` of Pillow, whose arithmetic this follows.
    """
    if interpolation not in INTERPOLATIONS:
        names = ", ".join(INTERPOLATIONS)
        raise ValueError(f"resample: interpolation must be one of {names}, got {interpolation!r}")
    if image.ndim != 3:
        raise ValueError(f"resample: image must be [h, w, C], got {list(image.shape)}")
    height, width = (int(n) for n in size)
    top, left, rows, columns = (0, 0, height, width) if crop is None else (int(n) for n in crop)
    channels = int(image.shape[2] if table is None else table.shape[0])
    planar = table is not None if planar is None else planar
    edges = (0, 0, image.shape[1], image.shape[0]) if box is None else box
    if rows * columns * channels > _MAX_OUTPUT or min(rows, columns) < 0:
        raise ValueError(f"resample: the output must be of a sane size, got [{rows}, {columns}, {channels}]")
    if len(edges) != 4:
        raise ValueError(f"resample: box must be (left, top, right, bottom), got {box}")
    shape = [channels, rows, columns] if planar else [rows, columns, channels]
    filter_ = INTERPOLATIONS[interpolation]
    vertical_first = _vertical_first(image.shape, height, width)
    call = (
        filter_,
        [height, width],
        [float(e) for e in edges],
        [top, left],
        flip,
        planar,
        vertical_first,
        threads,
    )
    if not isinstance(image, np.ndarray):
        if out is not None:
            raise ValueError("resample: out is for numpy arrays only")
        return _op(image, table, shape, *call)
    if out is None:
        out = np.empty(shape, np.uint8 if table is None else np.float32)
    elif list(out.shape) != shape:
        raise ValueError(f"resample: out must be {shape}, got {list(out.shape)}")
    if not _readable(image.shape, image.strides):
        image = np.ascontiguousarray(image)
    arguments = (image, out, table, *call)
    workspace = np.empty(_C.resample_workspace(*arguments), np.uint8)
    _C.resample(image, out, table, workspace, *call, stream=0)
    return out


def normalization_table(mean: Sequence[float], std: Sequence[float], rescale: float = 1 / 255) -> Float32:
    """The normalised float32 value of each byte value, one row a channel: [C, 256].

    ``(float32(byte * rescale) - float32(mean)) / float32(std)``, each step rounded to float32 (the product
    from float64). That is what the PIL image processors of transformers compute; with rescale 1/255 it is
    also, bit for bit, what torchvision's ToTensor + Normalize do, and with them timm and open_clip.

    Args:
        mean: of each channel, on the scale of ``byte * rescale``.
        std: of each channel.
        rescale: factor applied to the bytes.
    """
    return _table(tuple(map(float, mean)), tuple(map(float, std)), float(rescale))


@lru_cache(maxsize=64)
def _table(mean: tuple[float, ...], std: tuple[float, ...], rescale: float) -> Float32:
    if len(mean) != len(std) or not mean:
        raise ValueError(f"normalization_table: mean and std must be equally long, got {mean} and {std}")
    if not (np.isfinite([*mean, *std, rescale]).all() and all(std)):
        raise ValueError(f"normalization_table: finite mean and non-zero std wanted, got {mean} and {std}")
    scaled = (np.arange(256, dtype=np.float64) * rescale).astype(np.float32)
    table = (scaled - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
    table.setflags(write=False)
    return table


def pillow_pixels(image: Image.Image) -> UInt8:
    """The pixels of a Pillow image of mode RGB: [h, w, 3] uint8, with 4-byte pixels where possible.

    Shares the image's memory, read-only, where Pillow >= 11.3 exports it: images of up to 16 MB in memory.
    Others are copied strip by strip, which is four times faster than ``numpy.asarray``. Do not change the
    image while the array is in use.
    """
    if image.mode != "RGB":
        raise ValueError(f"pillow_pixels: the image must be of mode RGB, got {image.mode}")
    if (shared := _exported(image)) is not None:
        return shared[..., :3]
    width, height = image.size
    rows = max(1, _STRIP_BYTES // (width * 4))
    pixels = np.empty((height, width, 4), np.uint8)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        exported = _exported(strip)
        if exported is None:
            return np.asarray(image)
        pixels[top : top + rows] = exported
    return pixels[..., :3]


def _exported(image: Image.Image) -> UInt8 | None:
    """The memory of an RGB image, [h, w, 4], if Pillow exports it without a copy."""
    width, height = image.size
    if width * 4 % core.get_alignment():
        return None  # rows may be padded
    try:
        block = _C.arrow_pixels(*image.__arrow_c_array__())
    except (ValueError, TypeError):  # not in one piece, or another layout
        return None
    return np.frombuffer(block, np.uint8).reshape(height, width, 4)


def _vertical_first(shape: Sequence[int], height: int, width: int) -> bool:
    """Whether the Pillow that is installed resizes the vertical axis first: it rounds in between.

    Always horizontal first until 12.1; pull requests 9524 (12.2) and 9549 (13.0) changed that.
    """
    h, w = shape[:2]
    if _PILLOW < (12, 2) or h <= height:
        return False
    return h - height > 2 * (w - width) if _PILLOW >= (13, 0) else h > 100 * w


def _readable(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the kernel can read pixels with these strides (in elements) without a copy."""
    pixel = shape[2] if shape[1] == 1 else strides[1]
    return (shape[2] == 1 or strides[2] == 1) and shape[2] <= pixel <= 4


if torch is not None:
    from vision_accel.ops._layout import stream_of
    from vision_accel.ops._register import register

    def _outputs(image: "Tensor", table: "Tensor | None", shape: list[int]) -> "Tensor":
        return image.new_empty(shape, dtype=torch.uint8 if table is None else torch.float32)

    def _run(image: "Tensor", table: "Tensor | None", shape: list[int], *call: Any) -> "Tensor":
        out = _outputs(image, table, shape)
        if not _readable(image.shape, image.stride()):
            image = image.contiguous()
        needed = _C.resample_workspace(image, out, table, *call)
        _C.resample(image, out, table, image.new_empty(needed), *(*call, stream_of(image)))
        return out

    def _fake(image: "Tensor", table: "Tensor | None", shape: list[int], *_call: Any) -> "Tensor":
        return _outputs(image, table, shape)

    _dispatch = register(
        "resample",
        "(Tensor image, Tensor? table, SymInt[] shape, int filter, SymInt[] size, float[] box,"
        " SymInt[] corner, bool flip, bool planar, bool vertical_first, int threads) -> Tensor",
        _run,
        _fake,
    )

    def _op(image: "Tensor", table: Any, *rest: Any) -> Any:
        if isinstance(table, np.ndarray):
            table = torch.tensor(table, device=image.device)
        return _dispatch(image, table, *rest)
