# SPDX-License-Identifier: Apache-2.0
"""The DALI pipelines: encoded images and their plans -> images. Import this only where DALI is installed."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from vision_accel.data import dali_operations
from vision_accel.data.augment import AugmentConfig, Plan
from vision_accel.data.dali import Encoded
from vision_accel.data.preprocess import Preprocess

_FILTERS = {
    "nearest": types.INTERP_NN,
    "bilinear": types.INTERP_TRIANGULAR,
    "bicubic": types.INTERP_CUBIC,
    "lanczos": types.INTERP_LANCZOS3,
}


@dataclass(frozen=True)
class Device:
    """Where and how a pipeline runs.

    Attributes:
        gpu: its number; None for the CPU.
        threads: of the CPU; without a GPU, all work is theirs.
        hw_decoder_load: share of the JPEG images that the GPU's hardware decoder takes, where it has one.
        prefetch: batches that are prepared ahead.
    """

    gpu: int | None
    threads: int
    hw_decoder_load: float = 0.65
    prefetch: int = 2


class PipelineError(RuntimeError):
    """DALI cannot decode an image of a batch, or something else went wrong in a pipeline."""


Images = list[Any]  # DALI tensors, uint8 [h, w, 3] each; or one, float32 [B, 3, h, w]


class Pipelines:
    """Makes pipelines that all do the same.

    Args:
        recipe: size and normalisation.
        config: how training images vary; None: they are prepared as for evaluation.
        fill: colour of what RandAugment moves in.
        resize: do all that the plans say; otherwise only decode, and cut out ``Plan.box``.
        batch_size: at most this many images at once.
        device: where it runs.

    Raises:
        ValueError: DALI cannot resize in that way.
    """

    def __init__(
        self,
        recipe: Preprocess,
        config: AugmentConfig | None,
        fill: Sequence[int],
        resize: bool,
        batch_size: int,
        device: Device,
    ) -> None:
        self.recipe, self.fill, self.resize = recipe, fill, resize
        self.batch_size, self.device = batch_size, device
        c = config or AugmentConfig(crop="center", flip=0.0)
        self.interpolations = {"": [recipe.interpolation], "random": ["bilinear", "bicubic"]}.get(
            c.interpolation, [c.interpolation]
        )
        for name in self.interpolations:
            if resize and name not in _FILTERS:
                raise ValueError(f"DALI resizes with {', '.join(_FILTERS)}, not with {name}")
        self.window = c.crop != "random_resized"
        smaller = any(a < b for a, b in zip(recipe.resize_to or recipe.size, recipe.size, strict=True))
        self.bordered = self.window and (recipe.resize in {"longest", "none"} or smaller)
        self.flip, self.vertical_flip = c.flip > 0, c.vertical_flip > 0
        self.operations = dali_operations.names(c)
        self.stages = dali_operations.stages(c)
        self.fields = list(self._fields())

    def run(self, batches: Iterator[list[Encoded]]) -> Generator[Images, None, None]:
        """The images of each batch; what ``batches`` raises comes through after the last of them.

        Reads ahead. A tensor keeps its memory for as long as it, or a view of it, is in use.

        Raises:
            PipelineError: an image cannot be decoded; nothing says which.
        """
        failure: list[BaseException] = []

        def feed() -> tuple[Any, ...]:
            try:
                batch = next(batches)
            except StopIteration:
                raise
            except Exception as e:  # DALI would lose it
                failure.append(e)
                raise StopIteration from e
            arrays: list[Any] = [np.array([f.value(b) for b in batch], f.dtype) for f in self.fields]
            return ([b.data for b in batch], *arrays)

        pipe = self._create(feed)
        pipe.build()
        try:
            while True:
                try:
                    (images,) = pipe.run()
                except StopIteration:
                    break
                except RuntimeError as e:
                    raise PipelineError(str(e)) from e
                yield [images.as_tensor()] if self.resize else list(images)
        finally:
            del pipe
        if failure:
            raise failure[0]

    def _fields(self) -> Iterator["_Field"]:
        yield _Field("start", np.int32, 1, lambda e: (0, 0) if e.cut else e.plan.box[:2])
        yield _Field("shape", np.int32, 1, lambda e: e.plan.box[2:])
        if not self.resize:
            return
        if len(self.interpolations) > 1:
            yield _Field("bicubic", np.int32, 0, lambda e: e.plan.interpolation == "bicubic")
        if self.window:
            yield _Field("region", np.float32, 1, lambda e: _region(e.plan))
        if self.bordered:
            yield _Field("size", np.float32, 1, lambda e: e.plan.window[2:])
            yield _Field("corner", np.int32, 1, lambda e: [-c for c in e.plan.corner])
        if self.flip:
            yield _Field("flip", np.int32, 0, lambda e: e.plan.flip)
        if self.vertical_flip:
            yield _Field("vertical_flip", np.int32, 0, lambda e: e.plan.vertical_flip)
        for k in range(self.stages):
            yield from self._stage(k)

    def _stage(self, k: int) -> Iterator["_Field"]:
        known, size = self.operations, self.recipe.size
        yield _Field(f"code{k}", np.int32, 0, lambda e: dali_operations.code(e.plan.operations, k, known))
        yield _Field(f"value{k}", np.float32, 0, lambda e: dali_operations.value(e.plan.operations, k))
        if "Move" in known:
            yield _Field(
                f"matrix{k}", np.float32, 2, lambda e: dali_operations.matrix(e.plan.operations, k, size)
            )

    def _create(self, feed: Callable[[], tuple[Any, ...]]) -> Any:
        d = self.device
        names = [f.name for f in self.fields]

        options = pipeline_def(
            batch_size=self.batch_size,
            num_threads=d.threads,
            device_id=d.gpu,
            prefetch_queue_depth=d.prefetch,
            enable_conditionals=bool(self.stages) or len(self.interpolations) > 1,
        )

        def pipeline() -> Any:
            encoded, *values = fn.external_source(
                source=feed,
                num_outputs=1 + len(self.fields),
                batch=True,
                dtype=[types.UINT8, *(types.to_dali_type(np.dtype(f.dtype)) for f in self.fields)],
                ndim=[1, *(f.ndim for f in self.fields)],
            )
            given = dict(zip(names, values))  # noqa: B905  (DALI rewrites this function)
            return self._graph(encoded, given)

        return options(pipeline)()

    def _graph(self, encoded: Any, given: dict[str, Any]) -> Any:
        gpu = self.device.gpu is not None
        image = fn.decoders.image_slice(
            encoded,
            start=given["start"],
            shape=given["shape"],
            axes=[0, 1],
            device="mixed" if gpu else "cpu",
            output_type=types.RGB,
            jpeg_fancy_upsampling=True,  # as Pillow
            **({"hw_decoder_load": self.device.hw_decoder_load} if gpu else {}),
        )
        if not self.resize:
            return image
        how: dict[str, Any] = {"size": given.get("size", list(self.recipe.size)), "antialias": True}
        if self.window:
            how |= {"roi_start": given["region"][:2], "roi_end": given["region"][2:]}
        image = self._resized(image, how, given.get("bicubic"))
        if self.bordered:
            image = fn.slice(
                image,
                start=given["corner"],
                shape=list(self.recipe.size),
                axes=[0, 1],
                out_of_bounds_policy="pad",
                fill_values=[float(v) for v in self.recipe.fill],
            )
        mirror = given.get("flip", 0)
        if self.stages and self.flip:
            image, mirror = fn.flip(image, horizontal=mirror), 0
        for k in range(self.stages):
            image = dali_operations.vary(
                image,
                given[f"code{k}"],
                given.get(f"matrix{k}"),
                given[f"value{k}"],
                self.fill,
                self.operations,
            )
        if self.vertical_flip:
            image = fn.flip(image, horizontal=0, vertical=given["vertical_flip"])
        return fn.crop_mirror_normalize(
            image,
            mirror=mirror,
            mean=[m / self.recipe.rescale for m in self.recipe.mean],
            std=[s / self.recipe.rescale for s in self.recipe.std],
            dtype=types.FLOAT,
            output_layout="CHW",
        )

    def _resized(self, image: Any, how: dict[str, Any], bicubic: Any) -> Any:
        filters = [_FILTERS[name] for name in self.interpolations]
        if len(filters) == 1:
            return fn.resize(image, interp_type=filters[0], **how)
        return _either(image, how, bicubic, filters)


def _either(image: Any, how: dict[str, Any], bicubic: Any, filters: list[Any]) -> Any:
    if bicubic:
        resized = fn.resize(image, interp_type=filters[1], **how)
    else:
        resized = fn.resize(image, interp_type=filters[0], **how)
    return resized


@dataclass(frozen=True)
class _Field:
    """What a pipeline is fed with beside the encoded images."""

    name: str
    dtype: type
    ndim: int
    value: Callable[[Encoded], Any]


def _region(plan: Plan) -> tuple[float, float, float, float]:
    """The part of the image that becomes the window: (top, left, bottom, right) in pixels of the image."""
    (_, _, h, w), (top, left, rows, columns) = plan.box, plan.window
    y, x = h / plan.resized[0], w / plan.resized[1]
    return top * y, left * x, (top + rows) * y, (left + columns) * x
