# SPDX-License-Identifier: Apache-2.0
"""The preprocessing recipe that a checkpoint carries: one image -> the model's normalised input tensor.

Equal, bit for bit, to the PIL back ends of transformers' image processors and to timm's and open_clip's
evaluation transforms, their rounding of sizes and of crop offsets included.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vision_accel.data import recipe_formats
from vision_accel.data.images import Alpha, UInt8, load_image
from vision_accel.data.source import MAX_PIXELS
from vision_accel.ops.resample import INTERPOLATIONS, normalization_table, resample

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop or pad around the centre, scale and normalise.

    Attributes:
        size: (h, w) of the result, in pixels.
        resize: how the image is brought to ``resize_to``. "shortest": its aspect ratio is kept and it
            covers the target; "longest": kept, and it fits inside; "squash": exactly the target;
            "none": not at all.
        resize_to: (h, w), the target of the resizing; ``size`` by default. Larger than ``size`` where the
            reference crops (timm's crop_pct).
        interpolation: "nearest", "box", "bilinear", "hamming", "bicubic" or "lanczos", as in Pillow.
        mean: of each channel, subtracted after rescaling.
        std: of each channel, divided by.
        rescale: factor applied to the bytes.
        crop_offset: how half a pixel is settled when cropping or padding an odd margin. "floor" is
            transformers' rule, "round" (half to even) torchvision's, and so timm's and open_clip's.
        fill: colour of the border where the image is smaller than ``size``.
        alpha: what becomes of transparency, see ``load_image``.
    """

    size: tuple[int, int] = (224, 224)
    resize: Literal["shortest", "longest", "squash", "none"] = "shortest"
    resize_to: tuple[int, int] | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale: float = 1 / 255
    crop_offset: Literal["floor", "round"] = "round"
    fill: tuple[int, int, int] = (0, 0, 0)
    alpha: Alpha = "drop"

    def __post_init__(self) -> None:
        for name in ("size", "resize_to"):
            value = getattr(self, name)
            if value is not None and (len(value) != 2 or any(int(n) != n or n < 1 for n in value)):
                raise ValueError(f"Preprocess: {name} must be (height, width) in pixels, got {value}")
        allowed = {
            "resize": ("shortest", "longest", "squash", "none"),
            "interpolation": tuple(INTERPOLATIONS),
            "crop_offset": ("floor", "round"),
            "alpha": ("drop", "white"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"Preprocess: {name} must be one of {', '.join(values)}, got {getattr(self, name)!r}"
                )
        for name in ("mean", "std", "fill"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"Preprocess: {name} must have 3 values, got {getattr(self, name)}")
        normalization_table(self.mean, self.std, self.rescale)  # refuses what cannot be divided by

    def __call__(self, image: Any, *, max_pixels: int = MAX_PIXELS, threads: int = 0) -> Float32:
        """Prepare one image.

        Args:
            image: anything ``load_image`` takes.
            max_pixels: see ``load_image``.
            threads: at most this many for a large image; 0 for all.

        Returns:
            [3, h, w] float32.

        Raises:
            ImageError: the image cannot be used.
        """
        out = np.empty((3, *self.size), np.float32)
        self._write(load_image(image, max_pixels=max_pixels, alpha=self.alpha), out, threads)
        return out

    def batch(self, images: Sequence[Any], threads: int = 0, *, max_pixels: int = MAX_PIXELS) -> Float32:
        """Prepare many images, each on one of ``threads`` threads (0: one per usable core): [B, 3, h, w].

        Raises:
            ImageError: an image cannot be used; it is the first such image of the batch.
        """
        out = np.empty((len(images), 3, *self.size), np.float32)

        def prepare(i: int) -> None:
            self._write(load_image(images[i], max_pixels=max_pixels, alpha=self.alpha), out[i], 1)

        workers = min(len(images), threads or usable_cores())
        if workers <= 1:
            for i in range(len(images)):
                prepare(i)
        else:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(prepare, range(len(images))))
        return out

    def _write(self, pixels: UInt8, out: Float32, threads: int) -> None:
        table = normalization_table(self.mean, self.std, self.rescale)
        resized = self.resized_size(pixels.shape[0], pixels.shape[1])
        window, (top, left) = self.window(*resized)
        if window[2:] != self.size:
            out[:] = table[np.arange(3), list(self.fill)][:, None, None]
        resample(
            pixels,
            resized,
            interpolation=self.interpolation,
            crop=window,
            table=table,
            out=out[:, top : top + window[2], left : left + window[3]],
            threads=threads,
        )

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of an image of height x width after resizing, before the crop."""
        if self.resize == "none":
            return height, width
        to_h, to_w = self.resize_to or self.size
        if self.resize == "squash":
            return to_h, to_w
        if (
            self.resize == "shortest" and to_h == to_w
        ):  # torchvision's Resize(int), transformers' shortest_edge
            if width <= height:
                return int(to_w * height / width), to_w
            return to_h, int(to_h * width / height)
        # timm's and open_clip's ResizeKeepRatio
        ratio = (max if self.resize == "longest" else min)(height / to_h, width / to_w)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def window(self, height: int, width: int) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
        """What is kept of the resized image, and where it is put in the result.

        Args:
            height: of the resized image.
            width: of the resized image.

        Returns:
            (top, left, height, width) of the window in the resized image, and (top, left) of its place: not
            (0, 0) where the image is smaller than ``size`` and gets a border.
        """
        (top, h, y), (left, w, x) = self._cut(height, self.size[0]), self._cut(width, self.size[1])
        return (top, left, h, w), (y, x)

    def _cut(self, resized: int, wanted: int) -> tuple[int, int, int]:
        """Along one axis: start and length of the window, and its place."""
        margin = resized - wanted
        if margin < 0:
            return 0, resized, (-margin) // 2 if self.crop_offset == "round" else -(margin // 2)
        return (margin // 2 if self.crop_offset == "floor" else round(margin / 2)), wanted, 0

    # Recipes of other libraries -------------------------------------------------------------------------

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "Preprocess":
        """From the contents of transformers' preprocessor_config.json or processor_config.json.

        Known are the processors of ViT, DeiT, CLIP, SigLIP and BiT; keys that are absent have the defaults
        of the processor that is named.

        Raises:
            ValueError: a key is unknown, contradicts another, or asks for what cannot be done.
        """
        return cls(**recipe_formats.read_hf(config))

    @classmethod
    def from_timm(cls, config: Mapping[str, Any], *, test_size: bool = False) -> "Preprocess":
        """From timm's pretrained_cfg.

        Args:
            config: the ``pretrained_cfg`` object of a timm model or of its config.json.
            test_size: take test_input_size and test_crop_pct where given, as ``validate.py
                --use-test-size`` does.

        Raises:
            ValueError: as for ``from_hf``.
        """
        return cls(**recipe_formats.read_timm(config, test_size))

    @classmethod
    def from_open_clip(cls, config: Mapping[str, Any]) -> "Preprocess":
        """From the ``preprocess_cfg`` of open_clip_config.json.

        Raises:
            ValueError: as for ``from_hf``.
        """
        return cls(**recipe_formats.read_open_clip(config))

    def to_hf(self) -> dict[str, Any]:
        """As a preprocessor_config.json that transformers carries out in the same way.

        Raises:
            ValueError: transformers has no such recipe; what is in its way is named.
        """
        return recipe_formats.write_hf(self)

    def to_timm(self) -> dict[str, Any]:
        """As the preprocessing keys of a timm pretrained_cfg. Raises ValueError as ``to_hf`` does."""
        return recipe_formats.write_timm(self)

    def to_open_clip(self) -> dict[str, Any]:
        """As an open_clip preprocess_cfg. Raises ValueError as ``to_hf`` does."""
        return recipe_formats.write_open_clip(self)


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
