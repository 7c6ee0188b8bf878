# SPDX-License-Identifier: Apache-2.0
"""Label pictures with words of one's own, and compare pictures with texts."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from vision_accel.infer._images import Images, OnError
from vision_accel.infer.classify import Classification, Function, iter_classify
from vision_accel.infer.embed import embed
from vision_accel.models import CLIP
from vision_accel.models.zero_shot import (
    DEFAULT_TEMPLATES,
    ZeroShot,
    checked_labels,
    checked_templates,
    embed_texts,
)

Measure: TypeAlias = Literal["cosine", "logits", "softmax", "sigmoid"]


def zero_shot(
    model: Any,
    images: Images,
    labels: Sequence[str],
    templates: str | Iterable[str] = DEFAULT_TEMPLATES,
    *,
    top_k: int = 5,
    batch_size: int = 8,
    function: Function | None = None,
    workers: int | None = None,
    on_error: OnError = "raise",
) -> list[Classification]:
    """The best of ``labels`` for every picture, in the order of ``images``.

    Args:
        model: a CLIP or SigLIP.
        images: as for ``classify``.
        labels: names of classes, each once.
        templates: one or several texts with ``{}`` for the label; the embeddings of several are averaged.
        top_k: labels per picture (all of them when there are fewer).
        batch_size: pictures per pass. It changes speed and memory, not results.
        function: turns logits into scores; None: softmax for a CLIP, sigmoid for a SigLIP.
        workers: threads that read and prepare pictures; None: one per core, 0: none.
        on_error: as for ``classify``.

    Raises:
        ValueError: no or repeated labels, a template without ``{}``, no images, a model without tokenizer.
        vision_accel.data.ImageError: bad picture (``on_error="raise"``).

    Source: Radford et al. 2021, arXiv:2103.00020, section 3.1.
    """
    return list(
        iter_zero_shot(
            model,
            images,
            labels,
            templates,
            top_k=top_k,
            batch_size=batch_size,
            function=function,
            workers=workers,
            on_error=on_error,
        )
    )


def iter_zero_shot(
    model: Any,
    images: Images,
    labels: Sequence[str],
    templates: str | Iterable[str] = DEFAULT_TEMPLATES,
    *,
    top_k: int = 5,
    batch_size: int = 8,
    function: Function | None = None,
    workers: int | None = None,
    on_error: OnError = "raise",
    thumbnail: int = 0,
) -> Iterator[Classification]:
    """``zero_shot`` one result at a time; ``thumbnail`` as for ``iter_classify``."""
    return iter_classify(
        zero_shot_classifier(model, labels, templates),
        images,
        top_k,
        batch_size=batch_size,
        function=function or ("softmax" if _clip(model).logit_bias is None else "sigmoid"),
        workers=workers,
        on_error=on_error,
        thumbnail=thumbnail,
    )


def zero_shot_classifier(
    model: Any, labels: Sequence[str], templates: str | Iterable[str] = DEFAULT_TEMPLATES
) -> ZeroShot:
    """The classifier of a CLIP for some labels; the model keeps the last one until its weights change."""
    weights = tuple((p.data_ptr(), p._version, p.dtype) for p in _clip(model).parameters())
    key = (tuple(checked_labels(labels)), checked_templates(templates), weights)
    found: tuple[Any, Tensor] | None = getattr(model, "_zero_shot", None)
    if found is None or found[0] != key:
        made = ZeroShot(model, key[0], key[1])
        object.__setattr__(model, "_zero_shot", (key, made.get_buffer("weight")))
        return made
    return ZeroShot.of(model, key[0], found[1])


def similarity(
    model: Any,
    images: Images,
    texts: str | Sequence[str],
    *,
    measure: Measure = "cosine",
    batch_size: int = 8,
    workers: int | None = None,
) -> Tensor:
    """How well every picture fits every text.

    Args:
        model: a CLIP or SigLIP.
        images: as for ``classify``.
        texts: one or many.
        measure: ``"cosine"`` of the embeddings; ``"logits"``: scaled (and shifted) as in training;
            ``"softmax"`` of these over the texts; ``"sigmoid"`` of these, each text by itself.
        batch_size: pictures per pass. It changes speed and memory, not results.
        workers: threads that read and prepare pictures; None: one per core, 0: none.

    Returns:
        float32 on the CPU, [images, texts].

    Raises:
        ValueError: no images, no texts, a model without tokenizer, an unknown measure.
        vision_accel.data.ImageError: bad picture.
    """
    measures = ("cosine", "logits", "softmax", "sigmoid")
    if measure not in measures:
        raise ValueError(f"measure: must be one of {', '.join(measures)}, got {measure!r}")
    b = embed_text(model, texts)
    if not len(b):
        raise ValueError("texts: at least one is needed")
    a = embed(model, images, batch_size=batch_size, normalize=True, workers=workers)
    # Row by row: the last bits of a product of matrices may depend on their sizes.
    cosine = torch.stack([b @ row for row in a])
    if measure == "cosine":
        return cosine
    scale, bias = model.logit_scale.detach().float().exp().cpu(), model.logit_bias
    logits = cosine * scale if bias is None else cosine * scale + bias.detach().float().cpu()
    if measure == "logits":
        return logits
    return torch.stack([row.softmax(-1) if measure == "softmax" else row.sigmoid() for row in logits])


def embed_text(
    model: Any, texts: str | Sequence[str], *, batch_size: int = 64, normalize: bool = True
) -> Tensor:
    """Embeddings [n, E] of texts, float32 on the CPU.

    Args:
        model: a CLIP or SigLIP.
        texts: one or many; longer ones are cut as the model's tokenizer cuts them.
        batch_size: texts per pass. It changes speed and memory, not results.
        normalize: scale each vector to length 1, so that a dot product is the cosine similarity.
    """
    found = [texts] if isinstance(texts, str) else list(texts)
    return embed_texts(_clip(model), found, batch_size=batch_size, normalize=normalize).float().cpu()


def _clip(model: Any) -> CLIP:
    if not isinstance(model, CLIP):
        raise TypeError(f"model: expected a CLIP, got {type(model).__name__}")
    return model
