# SPDX-License-Identifier: Apache-2.0
"""Anything that is a picture -> batches of model inputs, prepared in threads."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from glob import glob, has_magic
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vision_accel.data.images import ImageError, load_image
from vision_accel.data.preprocess import Preprocess
from vision_accel.data.source import IMAGE_EXTENSIONS

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | np.ndarray[Any, Any] | Tensor"
)
Images: TypeAlias = "ImageSource | Iterable[ImageSource]"
OnError: TypeAlias = Literal["raise", "skip"]


@dataclass
class Item:
    """One picture on its way: ``pixels`` [3, h, w] ready for the model, or the ``error`` that stopped it."""

    source: str
    pixels: Tensor | None = None
    error: ImageError | None = None
    thumbnail: Image.Image | None = None


def expand(images: Images) -> Iterator[tuple[str, Any]]:
    """(name, picture) for every picture that ``images`` stands for.

    A folder stands for the image files below it in sorted order, a pattern with ``*?[`` for the files it
    matches. Unnamed pictures are called ``image 0``, ``image 1``, ... by their place.

    Raises:
        ValueError: a folder without images, or a pattern that matches none.
        TypeError: something that is no picture.
    """
    sources: Iterable[Any]
    if _is_one(images):
        sources = [images]
    elif isinstance(images, Iterable) and not isinstance(images, dict):
        sources = images
    else:
        raise TypeError(
            f"images: expected a path, bytes, PIL, numpy or torch image or a list of them, "
            f"got {type(images).__name__}"
        )
    place = 0
    for source in sources:
        for name, picture in _expand_one(source):
            yield name or f"image {place}", picture
            place += 1


def _is_one(images: Any) -> bool:
    """Whether this is one source of pictures and not a collection of sources."""
    kinds: Any = str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray | Tensor
    return isinstance(images, kinds) or hasattr(images, "read")


def _expand_one(source: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            yield from _named(_walk(path), f"no images in folder {str(source)!r}")
        elif has_magic(os.fspath(source)) and not path.exists():
            matches = filter(is_image_file, sorted(glob(os.fspath(source), recursive=True)))  # noqa: PTH207
            yield from _named(matches, f"no images match {str(source)!r}")
        else:
            yield str(source), path
    elif isinstance(source, np.ndarray | Tensor) and source.ndim == 4:
        for one in source:
            yield "", one
    elif _is_one(source):
        yield "", source
    else:
        raise TypeError(
            f"images: expected a path, bytes, PIL, numpy or torch image, got {type(source).__name__}"
        )


def _named(paths: Iterable[str], complaint: str) -> Iterator[tuple[str, Any]]:
    empty = True
    for path in paths:
        empty = False
        yield path, Path(path)
    if empty:
        raise ValueError(f"images: {complaint}")


def is_image_file(path: str) -> bool:
    """Whether the name is that of an image (hidden files are not looked at)."""
    name = os.path.basename(path)  # noqa: PTH119  (called for every file of a large folder)
    return not name.startswith(".") and name.lower().endswith(IMAGE_EXTENSIONS)


def _walk(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder, onerror=_raise):
        folders.sort()
        yield from (os.path.join(root, name) for name in sorted(files) if is_image_file(name))  # noqa: PTH118


def _raise(error: OSError) -> None:
    raise error


def batches(
    images: Images,
    preprocess: Preprocess,
    *,
    batch_size: int,
    ahead: int,
    workers: int | None = None,
    on_error: OnError = "raise",
    thumbnail: int = 0,
) -> Generator[list[Item], None, None]:
    """Lists of up to ``batch_size`` items in the order of ``images``; ``ahead + 1`` lists in memory at most.

    Args:
        images: see ``expand``. A floating torch tensor is taken as already preprocessed; anything else
            goes through ``data.load_image``.
        preprocess: the model's recipe.
        batch_size: pictures per list.
        ahead: lists that are prepared while the caller works on one. 0 suits a model that keeps all cores
            busy: the threads then work between its passes and not against it.
        workers: threads that decode and preprocess; None: one per core, at most 8; 0: the calling thread.
        on_error: ``"raise"`` the ImageError of a bad picture, or ``"skip"``: leave it in its item.
        thumbnail: also keep the picture shrunk to fit a square of this many pixels.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: must be at least 1, got {batch_size}")
    if on_error not in {"raise", "skip"}:
        raise ValueError(f"on_error: must be 'raise' or 'skip', got {on_error!r}")
    if workers is None:
        workers = min(8, torch.get_num_threads())
    elif workers < 0:
        raise ValueError(f"workers: must not be negative, got {workers}")

    sources = expand(images)
    chunks = iter(lambda: list(islice(sources, batch_size)), [])
    # Pictures are spread over the threads; one picture must not be spread again.
    make = partial(_make, preprocess=preprocess, threads=1 if workers else 0, thumbnail=thumbnail)
    for batch in _prepared(make, chunks, workers, ahead):
        if on_error == "raise":
            for item in batch:
                if item.error is not None:
                    raise item.error
        yield batch


def _prepared(
    make: Callable[..., Item], chunks: Iterator[list[tuple[str, Any]]], workers: int, ahead: int
) -> Generator[list[Item], None, None]:
    """``make(*source)`` for all sources of each chunk, on ``workers`` threads."""
    if workers == 0:
        yield from ([make(*source) for source in chunk] for chunk in chunks)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[list[Future[Item]]] = deque()
    try:
        for chunk in chunks:
            waiting.append([pool.submit(make, *source) for source in chunk])
            if len(waiting) > ahead:
                yield [item.result() for item in waiting.popleft()]
        while waiting:
            yield [item.result() for item in waiting.popleft()]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _make(name: str, picture: Any, preprocess: Preprocess, threads: int, thumbnail: int) -> Item:
    item = Item(name)
    if isinstance(picture, Tensor) and picture.is_floating_point():
        if picture.ndim != 3:
            raise TypeError(f"images: a preprocessed tensor must be [3, h, w], got {list(picture.shape)}")
        item.pixels = picture
        return item
    try:
        pixels = load_image(picture, alpha=preprocess.alpha)
        item.pixels = torch.from_numpy(preprocess(pixels, threads=threads))
    except ImageError as error:
        item.error = error
        return item
    if thumbnail:
        item.thumbnail = Image.fromarray(pixels)
        item.thumbnail.thumbnail((thumbnail, thumbnail))
    return item
