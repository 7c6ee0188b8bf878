# SPDX-License-Identifier: Apache-2.0
"""Features of pictures, for search, clustering and linear probes."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from vision_accel.infer import _graph
from vision_accel.infer._images import Images, OnError, batches
from vision_accel.infer._model import evaluating, lists_ahead, preprocess_of, stack
from vision_accel.models import CLIP

Pooling: TypeAlias = Literal["model", "token", "avg", "none"]


@dataclass
class Embedding:
    """Features of one picture, float32 on the CPU; ``error`` says why there are none."""

    source: str
    features: Tensor | None = None
    error: str | None = None


def embed(
    model: Any,
    images: Images,
    pooling: Pooling = "model",
    *,
    batch_size: int = 8,
    normalize: bool = False,
    workers: int | None = None,
    on_error: OnError = "raise",
) -> Tensor:
    """Features [n, C] of every picture, float32 on the CPU, in the order of ``images``.

    Args:
        model: a ViT, with or without a classifier, or a CLIP.
        images: as for ``classify``.
        pooling: ``"model"``: what the classifier of this model sees, or a CLIP's embedding;
            ``"token"``: the class token; ``"avg"``: the mean of the patch tokens; ``"none"``: every token
            after the final norm, [n, N, C].
        batch_size: pictures per pass. It changes speed and memory, not results.
        normalize: scale each vector to length 1, so that a dot product is the cosine similarity.
        workers: threads that read and prepare pictures; None: one per core, 0: none.
        on_error: ``"raise"`` the first bad picture's ImageError, or ``"skip"``: its row is nan, and a
            warning names it.

    Raises:
        ValueError: no images found, bad option, ``"token"`` of a model without class token.
        vision_accel.data.ImageError: bad picture (``on_error="raise"``).
    """
    found = list(
        iter_embed(
            model,
            images,
            pooling,
            batch_size=batch_size,
            normalize=normalize,
            workers=workers,
            on_error=on_error,
        )
    )
    bad = [e for e in found if e.error is not None]
    if bad:
        text = f"{len(bad)} of {len(found)} images could not be read; first: {bad[0].error}"
        warnings.warn(text, stacklevel=2)
    good = [e.features for e in found if e.features is not None]
    if not good:
        return torch.empty(len(found), model.num_features).fill_(torch.nan)
    nothing = torch.full_like(good[0], torch.nan)
    return torch.stack([nothing if e.features is None else e.features for e in found])


def iter_embed(
    model: Any,
    images: Images,
    pooling: Pooling = "model",
    *,
    batch_size: int = 8,
    normalize: bool = False,
    workers: int | None = None,
    on_error: OnError = "raise",
) -> Iterator[Embedding]:
    """``embed`` one result at a time, for collections that do not fit in memory."""
    if pooling not in {"model", "token", "avg", "none"}:
        raise ValueError(f"pooling: must be 'model', 'token', 'avg' or 'none', got {pooling!r}")
    if pooling == "token" and not _tower(model).config.class_token:
        raise ValueError("pooling: 'token' needs a model with a class token; this one has none")
    stream = batches(
        images,
        preprocess_of(model),
        batch_size=batch_size,
        ahead=lists_ahead(model),
        workers=workers,
        on_error=on_error,
    )
    for items in stream:
        good = [item for item in items if item.error is None]
        rows: Iterator[Tensor] = iter(())
        if good:
            with evaluating(model):
                pooled = partial(_pooled, model, pooling=pooling)
                features = _graph.run(model, pooling, pooled, stack(good, model)).float().cpu()
                if normalize:
                    features = torch.nn.functional.normalize(features, dim=-1)
            # Copies: a row that is kept must not hold on to its whole batch.
            rows = iter(row.clone() for row in features)
        for item in items:
            if item.error is not None:
                yield Embedding(item.source, error=str(item.error))
            else:
                yield Embedding(item.source, next(rows))


def _tower(model: Any) -> Any:
    """The ViT of a model."""
    return model.visual if isinstance(model, CLIP) else model


def _pooled(model: Any, x: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "model" and isinstance(model, CLIP):
        return model.encode_image(x, normalize=False)
    model = _tower(model)
    if pooling == "model":
        pooled: Tensor = model(x, pre_logits=True)
        return pooled
    tokens: Tensor = model.forward_features(x)  # [B, N, C]
    if pooling == "token":
        return tokens[:, 0]
    if pooling == "avg":
        return tokens[:, model.config.num_prefix_tokens :].mean(dim=1)
    return tokens
