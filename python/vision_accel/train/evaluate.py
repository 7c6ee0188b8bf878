# SPDX-License-Identifier: Apache-2.0
"""Evaluation: the pass over the images that every task makes; top-1, top-5 and loss of a classifier."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

import vision_accel as va
from vision_accel import ops
from vision_accel.data.dali import DaliOptions, create_loader
from vision_accel.data.folder import open_images, too_many_bad
from vision_accel.data.loader import EvalImages, EvalTransform, collate_eval, worker_error
from vision_accel.data.source import BadSample, DataError, Source, relabel
from vision_accel.models.device import choose_device
from vision_accel.train.distributed import World


@dataclass(frozen=True)
class EvalResult:
    """How a model did."""

    top1: float
    """Share of images whose label is the largest logit."""
    top5: float
    """Share of images whose label is among the five largest logits."""
    loss: float
    """Mean cross-entropy."""
    images: int
    """Images that were read."""
    images_per_s: float
    bad: list[BadSample]
    """Files that could not be read; they are not counted."""


def evaluate(
    model: nn.Module | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    workers: int = 0,
    loader: Literal["builtin", "dali"] = "builtin",
    precision: str = "fp32",
    device: str | None = None,
    max_bad_fraction: float = 0.05,
) -> EvalResult:
    """Evaluate a classifier.

    Args:
        model: a model with ``.preprocess``, or what ``va.load`` takes.
        folder: one folder of images per class, or tars; where the model knows names for its labels and
            the folder's are among them, they are matched by name, otherwise the sorted names are labels
            0, 1, ...
        batch_size: images per forward pass.
        workers: processes that decode images; with dali, that read files.
        loader: what decodes: the workers, or NVIDIA DALI in threads; the pixels are the same.
        precision: fp32, bf16 or fp16 (autocast).
        device: auto, cpu, cuda or cuda:N; if not given, a model stays where it is and a path is "auto".
        max_bad_fraction: share of the images that may be unreadable.

    Raises:
        DataError: the folder cannot be used or does not fit the model, or too many images are unreadable, or
            DALI is not installed.
        ValueError: an unknown precision or loader, or a number out of range.
    """
    for name, value, known in (
        ("precision", precision, ("fp32", "bf16", "fp16")),
        ("loader", loader, ("builtin", "dali")),
    ):
        if value not in known:
            raise ValueError(f"{name}: must be one of {', '.join(known)}, got {value!r}")
    for name, number, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if number < least:
            raise ValueError(f"{name}: must be at least {least}, got {number}")
    if isinstance(model, nn.Module):
        classifier = model if device is None else model.to(choose_device(device))
    else:
        classifier = va.load(model, device=device or "auto")
    transform: Any = classifier.preprocess
    if transform is None:
        raise DataError("the model does not say how images are prepared for it; set model.preprocess")
    result = evaluate_folder(
        classifier,
        labelled(classifier, folder),
        transform,
        World(next(classifier.parameters()).device),
        EvalOptions(
            batch_size,
            workers,
            precision=precision,
            max_bad_fraction=max_bad_fraction,
            dali=DaliOptions("exact") if loader == "dali" else None,
        ),
    )
    assert result is not None  # nobody interrupts
    return result


def labelled(model: nn.Module, folder: str | os.PathLike[str]) -> Source:
    """The images with the model's label numbers."""
    source = open_images(folder)
    names: dict[int, str] = getattr(model, "labels", None) or {}
    config: Any = model.config
    count: int = config.num_classes
    if names and set(source.classes) <= set(names.values()):
        return relabel(source, [names.get(i, "") for i in range(count)])
    numbers = source.classes == tuple(map(str, range(len(source.classes))))
    if len(source.classes) != count and not (numbers and len(source.classes) < count):
        raise DataError(f"{source.root}: {len(source.classes)} classes, but the model has {count}")
    return source


@dataclass(frozen=True)
class EvalOptions:
    """How a run evaluates; the fields are those of :func:`evaluate` and of the training options."""

    batch_size: int = 64
    workers: int = 0
    start_method: str = "fork"
    precision: str = "fp32"
    max_bad_fraction: float = 0.05
    dali: DaliOptions | None = None


def evaluate_folder(
    model: nn.Module,
    folder: Source,
    transform: EvalTransform,
    world: World,
    options: EvalOptions,
    interrupted: Callable[[], bool] = lambda: False,
) -> EvalResult | None:
    """Evaluate a classifier on the processes of a run; None if interrupted."""
    start = time.perf_counter()
    sums = torch.zeros(4, dtype=torch.float64)  # images, top-1, top-5, loss

    def score(batch: dict[str, Tensor]) -> None:
        sums.add_(_score(model, batch))

    bad = evaluation_pass(model, EvalImages(folder, transform), score, world, options, interrupted)
    if bad is None:
        return None
    images, top1, top5, loss = world.sum(sums.tolist())
    seconds = time.perf_counter() - start
    return EvalResult(top1 / images, top5 / images, loss / images, int(images), images / seconds, bad)


def evaluation_pass(
    model: nn.Module,
    samples: EvalImages,
    score: Callable[[dict[str, Tensor]], None],
    world: World,
    options: EvalOptions,
    interrupted: Callable[[], bool] = lambda: False,
) -> list[BadSample] | None:
    """Call ``score`` with each batch of this process's share of the samples, on the model's device.

    The model is in evaluation mode meanwhile, under autocast where the options say so, without gradients.

    Returns:
        The samples of all processes that could not be read, or None if one of them was interrupted.

    Raises:
        DataError: too many of them, or all.
    """
    source, size = samples.source, options.batch_size
    mine = list(range(world.rank, len(source), world.size))
    bad: list[BadSample] = []
    was_training = model.training
    model.eval()
    stopped = False
    try:
        loader = create_loader(
            samples,
            [mine[i : i + size] for i in range(0, len(mine), size)],
            collate_eval,
            dali=options.dali,
            batch_size=size,
            device=world.device,
            workers=options.workers,
            start_method=options.start_method,
        )
        with loader, torch.no_grad(), autocast(world.device, options.precision):
            for batch in loader:
                bad += batch.bad
                if batch.tensors:
                    score({k: v.to(world.device) for k, v in batch.tensors.items()})
                stopped = interrupted()
                if stopped:
                    break
    except RuntimeError as e:
        if clear := worker_error(e):
            raise clear from e
        raise
    finally:
        model.train(was_training)
    if world.any(stopped):
        return None
    bad = world.gather(bad)
    if len(bad) > options.max_bad_fraction * len(source) or len(bad) == len(source):
        raise too_many_bad(source.root, len(source), {b.file: b.error for b in bad}, options.max_bad_fraction)
    return bad


def _score(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    label = batch["label"]
    logits = model(batch["image"]).float()
    loss = ops.cross_entropy(logits, label, reduction="sum")
    hits = logits.topk(min(5, logits.shape[1])).indices == label[:, None]  # [B, 5]
    counts = [hits.new_tensor(len(label), dtype=torch.float64), hits[:, 0].sum(), hits.sum(), loss]
    return torch.stack([c.double().cpu() for c in counts])


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast for "bf16" and "fp16", nothing for "fp32"."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)
