# SPDX-License-Identifier: Apache-2.0
"""Label pictures with a classifier."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from PIL import Image
from torch import Tensor

from vision_accel.infer import _graph
from vision_accel.infer._images import Images, OnError, batches
from vision_accel.infer._model import evaluating, lists_ahead, preprocess_of, stack

Function: TypeAlias = Literal["softmax", "sigmoid", "none"]


class Prediction(NamedTuple):
    """A label and its score."""

    label: str
    score: float


@dataclass
class Classification:
    """The best labels of one picture, best first; ``error`` says why there are none."""

    source: str
    predictions: list[Prediction] = field(default_factory=list)
    error: str | None = None
    thumbnail: Image.Image | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """The best label; ``""`` for a bad picture."""
        return self.predictions[0].label if self.predictions else ""

    @property
    def score(self) -> float:
        """The score of the best label; nan for a bad picture."""
        return self.predictions[0].score if self.predictions else float("nan")


def classify(
    model: Any,
    images: Images,
    top_k: int = 5,
    *,
    batch_size: int = 8,
    function: Function = "softmax",
    workers: int | None = None,
    on_error: OnError = "raise",
) -> list[Classification]:
    """The ``top_k`` labels of every picture, in the order of ``images``.

    Args:
        model: a classifier such as ``va.load`` returns: its ``preprocess`` and labels are used.
        images: a path, folder, pattern, bytes, PIL image, numpy uint8 [h, w, 3] or [B, h, w, 3], torch
            uint8 [3, h, w] or [B, 3, h, w], a floating torch tensor of that shape that is already
            preprocessed, or any iterable of these.
        top_k: labels per picture (all of them when the model has fewer).
        batch_size: pictures per pass. It changes speed and memory, not results.
        function: turns logits into scores: ``"softmax"``, ``"sigmoid"`` (several labels may hold) or
            ``"none"`` (logits).
        workers: threads that read and prepare pictures; None: one per core, 0: none.
        on_error: ``"raise"`` the first bad picture's ImageError, or ``"skip"``: its result has ``error``
            set and no predictions, and all others are labelled.

    Raises:
        ValueError: model without classifier, no images found, bad option.
        vision_accel.data.ImageError: bad picture (``on_error="raise"``).
    """
    results = iter_classify(
        model,
        images,
        top_k,
        batch_size=batch_size,
        function=function,
        workers=workers,
        on_error=on_error,
    )
    return list(results)


def iter_classify(
    model: Any,
    images: Images,
    top_k: int = 5,
    *,
    batch_size: int = 8,
    function: Function = "softmax",
    workers: int | None = None,
    on_error: OnError = "raise",
    thumbnail: int = 0,
) -> Iterator[Classification]:
    """``classify`` one result at a time, for collections that do not fit in memory.

    ``thumbnail`` keeps each picture in its result, shrunk to fit a square of this many pixels.
    """
    if top_k < 1:
        raise ValueError(f"top_k: must be at least 1, got {top_k}")
    if function not in {"softmax", "sigmoid", "none"}:
        raise ValueError(f"function: must be 'softmax', 'sigmoid' or 'none', got {function!r}")
    if getattr(model.config, "num_classes", 0) == 0:
        raise ValueError("model: has no classifier (num_classes is 0); va.embed gives its features")
    names = model.labels or {}
    stream = batches(
        images,
        preprocess_of(model),
        batch_size=batch_size,
        ahead=lists_ahead(model),
        workers=workers,
        on_error=on_error,
        thumbnail=thumbnail,
    )
    for items in stream:
        good = [item for item in items if item.error is None]
        rows: Iterator[list[Prediction]] = iter(())
        if good:
            with evaluating(model):
                rows = iter(
                    _best(_graph.run(model, "logits", model, stack(good, model)), top_k, function, names)
                )
        for item in items:
            if item.error is not None:
                yield Classification(item.source, error=str(item.error))
            else:
                yield Classification(item.source, next(rows), thumbnail=item.thumbnail)


def _best(logits: Tensor, top_k: int, function: Function, names: dict[int, str]) -> list[list[Prediction]]:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "softmax": lambda row: row.softmax(-1),
        "sigmoid": lambda row: row.sigmoid(),
        "none": lambda row: row,
    }
    results = []
    # Row by row: the last bits of torch's vectorised functions depend on the place in the batch.
    for row in logits.float():
        values, classes = functions[function](row).topk(min(top_k, len(row)))
        pairs = zip(classes.tolist(), values.tolist(), strict=True)
        results.append([Prediction(names.get(c, f"class {c}"), v) for c, v in pairs])
    return results
