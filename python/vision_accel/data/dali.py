# SPDX-License-Identifier: Apache-2.0
"""Loading with NVIDIA DALI: it decodes, cuts, resizes and varies images on its threads or on the GPU.

All else is that of the built-in loader: which sample comes when, the random numbers, captions, what becomes
of broken samples. Worker processes (or this one) read encoded images, check their structure and draw their
plans; DALI carries the plans out. A batch is thus a function of (seed, position), and a run resumes anywhere.
"""

import copy
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.dlpack import from_dlpack

from vision_accel.data.augment import Augment, AugmentConfig, Plan, erase, evaluation_plan
from vision_accel.data.headers import plain_size
from vision_accel.data.images import load_image
from vision_accel.data.loader import SIZES, Batch, Loader, Sample, default_workers
from vision_accel.data.preprocess import Preprocess
from vision_accel.data.source import MAX_PIXELS, DataError
from vision_accel.ops.resample import resample

Resize = Literal["auto", "dali", "exact"]


@dataclass(frozen=True)
class DaliOptions:
    """How DALI works.

    Attributes:
        resize: "dali": DALI resizes and varies; "exact": DALI decodes, and the built-in code does the rest;
            on the CPU the result is then that of the built-in loader, bit for bit, and faster than with
            "dali"; "auto": exact on the CPU, dali on a GPU.
        threads: of the CPU; 0 for one per core.
        hw_decoder_load: share of the JPEG images that the GPU's hardware decoder takes, where it has one.
        prefetch: batches that are prepared ahead.
    """

    resize: Resize = "auto"
    threads: int = 0
    hw_decoder_load: float = 0.65
    prefetch: int = 2


def require_dali() -> None:
    """Raise a DataError that names the extra if DALI is not installed or does not load."""
    try:
        import nvidia.dali.fn  # noqa: F401, PLC0415  (heavy and optional)
    except (ImportError, OSError) as e:
        raise DataError(
            f"NVIDIA DALI is needed (pip install 'vision-accel[dali]', Linux x86-64 or SBSA): {e}"
        ) from e


class DaliTransform:
    """In place of a transform: encoded image -> uint8 [n], its plan and its bytes, for ``DaliLoader``.

    What DALI does not read as Pillow does is decoded here.

    Args:
        recipe: of the model's input.
        config: how training images vary; None for evaluation.
        options: of DALI.
    """

    def __init__(
        self,
        recipe: Preprocess,
        config: AugmentConfig | None = None,
        options: DaliOptions | None = None,
    ) -> None:
        self.recipe, self.config, self.options = recipe, config, options or DaliOptions()
        self.augment = Augment(recipe, config or AugmentConfig(crop="center", flip=0.0))
        self.verify = False

    def verifying(self) -> "DaliTransform":
        """One that decodes every image to see whether it can be."""
        other = copy.copy(self)
        other.verify = True
        return other

    def __call__(self, data: bytes, rng: np.random.Generator | None = None) -> Tensor:
        """Draw the plan of an encoded image. Raises ImageError as ``load_image``."""
        size = plain_size(data)
        pixels = None
        if size is None or size[0] * size[1] > MAX_PIXELS or self.verify:
            pixels = load_image(data, alpha=self.recipe.alpha)
            height, width = pixels.shape[:2]
        else:
            height, width = size
        if self.config is None or rng is None:
            plan = evaluation_plan(self.recipe, height, width)
        else:
            plan = self.augment.plan(height, width, rng)
        if size is None and pixels is not None:
            data = _ppm(pixels, plan)
        head = pickle.dumps((plan, size is None))
        record = bytearray().join([len(head).to_bytes(4, "little"), head, data])
        return torch.frombuffer(record, dtype=torch.uint8)

    def decoded(self, image: "Encoded") -> "Encoded":
        """The same image for DALI to copy, because it cannot decode it."""
        pixels = load_image(image.data.tobytes(), alpha=self.recipe.alpha)
        return Encoded(image.plan, np.frombuffer(_ppm(pixels, image.plan), np.uint8), True)


def _ppm(pixels: NDArray[np.uint8], plan: Plan) -> bytes:
    """The part of an image that the plan uses, in a format that takes no decoding."""
    top, left, h, w = plan.box
    return b"P6 %d %d 255\n%b" % (w, h, pixels[top : top + h, left : left + w].tobytes())


class Encoded(NamedTuple):
    """An encoded image and what is done to it."""

    plan: Plan
    data: NDArray[np.uint8]
    cut: bool  # the data hold no more than the plan's box


def _unpack(batch: Batch) -> list[Encoded]:
    """What ``DaliTransform`` packed, without copies."""
    images: list[Encoded] = []
    if batch.tensors:
        data, end = batch.tensors["image"].numpy(), 0
        for size in batch.tensors["image" + SIZES].tolist():
            start, end = end, end + size
            after = start + 4 + int.from_bytes(data[start : start + 4].tobytes(), "little")
            plan, cut = pickle.loads(data[start + 4 : after].data)
            images.append(Encoded(plan, data[after:end], cut))
    return images


class _InFlight:
    """A batch on its way through the pipeline."""

    def __init__(self, keys: list[Any], batch: Batch) -> None:
        self.keys, self.batch, self.encoded = keys, batch, _unpack(batch)
        self.images: Any = None  # once they are decoded


class DaliLoader:
    """As ``Loader``, with the images decoded and varied by DALI; use it as a context manager.

    Structure is checked before DALI sees a file, but it may still fail on one, and DALI does not say on
    which. Then the batches on their way are decoded one by one, the built-in decoder finds the broken
    samples, which are reported and replaced as always, and a new pipeline goes on.

    Args:
        samples: a data set whose ``transform`` is a ``DaliTransform``.
        batches: the keys of each batch, in order.
        collate: makes one batch of the samples.
        batch_size: of the largest batch.
        device: where DALI works and leaves the images. They are handed over without a copy, and stay
            valid for as long as anybody uses them.
        workers: number of processes that read files; 0 reads in this process.
        start_method: how workers start.
        timeout: seconds to wait for a batch before the run stops with an error; 0 waits for ever.

    Raises:
        DataError: DALI is not installed; (while iterating) a worker died or hung, or images cannot be
            replaced.
        ValueError: DALI cannot do what the recipe or the augmentation wants.
    """

    def __init__(
        self,
        samples: Dataset[Sample],
        batches: Iterable[list[Any]],
        collate: Callable[[list[Sample]], Batch],
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        workers: int = 0,
        start_method: str = "fork",
        timeout: float = 0.0,
    ) -> None:
        require_dali()
        from vision_accel.data import dali_pipeline  # noqa: PLC0415  (needs DALI)

        self.samples, self.collate = samples, collate
        self.transform: DaliTransform = samples.transform  # type: ignore[attr-defined]
        self.device = torch.device(device)
        t, options = self.transform, self.transform.options
        gpu = (self.device.index or 0) if self.device.type == "cuda" else None
        exact = options.resize == "exact" or (options.resize == "auto" and gpu is None)
        threads = options.threads or default_workers()
        where = dali_pipeline.Device(gpu, threads, options.hw_decoder_load, options.prefetch)
        self._failed = dali_pipeline.PipelineError
        self._pipelines = dali_pipeline.Pipelines(
            t.recipe, t.config, t.augment.fill, not exact, batch_size, where
        )
        if exact and gpu is not None and self._pipelines.stages:
            raise ValueError("on a GPU, colours and RandAugment need DALI's own resizing")
        self._pool = ThreadPoolExecutor(threads) if exact else None
        self._keys: deque[list[Any]] = deque()
        self._loader = Loader(
            samples,
            _Noted(batches, self._keys),
            collate,
            batch_size=batch_size,
            workers=workers,
            start_method=start_method,
            timeout=timeout,
        )
        self.processes = self._loader.processes
        self._flight: deque[_InFlight] = deque()
        self._encoded = self._read()
        self._running = self._pipelines.run(self._encoded)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while True:
            first = self._flight[0] if self._flight else None
            if first is not None and (first.images is not None or not first.encoded):
                self._flight.popleft()
                return self._finished(first)
            try:
                images = next(self._running)
            except self._failed:
                self._recover()
                continue
            next(f for f in self._flight if f.encoded).images = images

    def __enter__(self) -> "DaliLoader":
        return self

    def __exit__(self, *details: object) -> None:
        self._running.close()
        if self._pool is not None:
            self._pool.shutdown()
        self._loader.__exit__(*details)

    def _read(self) -> Iterator[list[Encoded]]:
        for batch in self._loader:
            entry = _InFlight(self._keys.popleft(), batch)
            self._flight.append(entry)
            if entry.encoded:
                yield entry.encoded

    def _recover(self) -> None:
        """Decode what is on its way without the images that cannot be, and begin anew behind it."""
        for entry in self._flight:
            if entry.encoded and entry.images is None:
                entry.images = self._carefully(entry)
        self._running = self._pipelines.run(self._encoded)

    def _carefully(self, entry: _InFlight) -> Any:
        images = self._alone(entry.encoded)
        if images is not None:
            return images
        samples: Any = copy.copy(self.samples)
        samples.transform = self.transform.verifying()
        entry.batch = self.collate([samples[key] for key in entry.keys])
        if entry.batch.error:
            raise DataError(entry.batch.error)
        entry.encoded = _unpack(entry.batch)
        images = self._alone(entry.encoded) if entry.encoded else None
        if images is not None or not entry.encoded:
            return images
        usable = [self._alone([e]) is not None for e in entry.encoded]
        entry.encoded = [
            e if ok else self.transform.decoded(e) for e, ok in zip(entry.encoded, usable, strict=True)
        ]
        return next(self._pipelines.run(iter([entry.encoded])))

    def _alone(self, encoded: list[Encoded]) -> Any:
        try:
            return next(self._pipelines.run(iter([encoded])))
        except self._failed:
            return None

    def _finished(self, entry: _InFlight) -> Batch:
        tensors = {k: v for k, v in entry.batch.tensors.items() if not k.endswith(SIZES)}
        if entry.encoded:
            plans = [e.plan for e in entry.encoded]
            if self._pool is None:
                tensors["image"] = from_dlpack(entry.images[0])
                for image, plan in zip(tensors["image"], plans, strict=True):
                    erase(image, plan.erased)
            elif self.device.type == "cuda":
                tensors["image"] = torch.stack(
                    [self._on_gpu(from_dlpack(i), p) for i, p in zip(entry.images, plans, strict=True)]
                )
            else:
                out = np.empty((len(plans), 3, *self.transform.recipe.size), np.float32)

                def apply(k: int) -> None:
                    out[k] = self.transform.augment.apply(np.asarray(entry.images[k]), plans[k], cut=True)

                list(self._pool.map(apply, range(len(plans))))
                tensors["image"] = torch.from_numpy(out)
        return entry.batch._replace(tensors=tensors)

    def _on_gpu(self, pixels: Tensor, plan: Plan) -> Tensor:
        augment, size = self.transform.augment, self.transform.recipe.size
        table = torch.as_tensor(augment.table, device=pixels.device)
        colour = [table[c, v] for c, v in enumerate(self.transform.recipe.fill)]
        (y, x), (h, w) = plan.corner, plan.window[2:]
        part = resample(
            pixels,
            plan.resized,
            interpolation=plan.interpolation,
            crop=plan.window,
            flip=plan.flip,
            table=table,
        )
        image = torch.stack(colour)[:, None, None].repeat(1, *size)
        x = size[1] - w - x if plan.flip else x
        image[:, y : y + h, x : x + w] = part
        image = image.flip(1) if plan.vertical_flip else image
        erase(image, plan.erased)
        return image


def create_loader(
    samples: Dataset[Sample],
    batches: Iterable[list[Any]],
    collate: Callable[[list[Sample]], Batch],
    *,
    dali: DaliOptions | None,
    batch_size: int,
    device: torch.device,
    pin_memory: bool = False,
    **how: Any,
) -> Loader | DaliLoader:
    """The built-in loader, or DALI's in its place.

    Args:
        samples: a data set whose ``transform`` is an ``Augment`` or a ``Preprocess``.
        batches: see ``Loader``.
        collate: see ``Loader``.
        dali: how DALI works; None for the built-in loader.
        batch_size: of the largest batch.
        device: where the batches are used.
        pin_memory: see ``Loader``.
        how: other options of both loaders.

    Raises:
        DataError: DALI is not installed, or cannot take the place of this transform.
    """
    if dali is None:
        return Loader(samples, batches, collate, batch_size=batch_size, pin_memory=pin_memory, **how)
    samples = copy.copy(samples)
    transform = getattr(samples, "transform", None)
    if isinstance(transform, Augment):
        samples.transform = DaliTransform(transform.recipe, transform.config, dali)  # type: ignore[attr-defined]
    elif isinstance(transform, Preprocess):
        samples.transform = DaliTransform(transform, None, dali)  # type: ignore[attr-defined]
    else:
        raise DataError(f"DALI cannot take the place of a {type(transform).__name__}")
    try:
        return DaliLoader(samples, batches, collate, batch_size=batch_size, device=device, **how)
    except ValueError as e:
        raise DataError(f"the DALI loader: {e}") from e


class _Noted:
    """Batches of keys, each noted when a worker gets it."""

    def __init__(self, batches: Iterable[list[Any]], keys: "deque[list[Any]]") -> None:
        self.batches, self.keys = batches, keys

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in self.batches:
            self.keys.append(batch)
            yield batch

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]
