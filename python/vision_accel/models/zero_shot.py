# SPDX-License-Identifier: Apache-2.0
"""A classifier made of a CLIP and the names of classes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vision_accel.models.clip import CLIP

# OpenAI's seven best of its eighty: notebook on prompt engineering of Radford et al. 2021, arXiv:2103.00020.
SIMPLE_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
DEFAULT_TEMPLATES = ("a photo of a {}.",)


@dataclass(frozen=True)
class ZeroShotConfig:
    """What a classifier says about itself."""

    num_classes: int
    class_token: bool = True


class ZeroShot(nn.Module):
    """Classifies images by the labels whose texts fit them best; it serves wherever a classifier does.

    A label's embedding is the mean of its embeddings in all templates, each of length 1, brought to length 1.
    It is computed once, when this is made.

    Args:
        clip: the model, with its tokenizer.
        labels: names of the classes.
        templates: texts with ``{}`` where the name goes.
        names: what to write into the templates, where that differs from the labels.

    Raises:
        ValueError: no labels, a label twice, or a template without ``{}``.
    """

    def __init__(
        self,
        clip: CLIP,
        labels: Sequence[str],
        templates: str | Iterable[str] = DEFAULT_TEMPLATES,
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        templates = checked_templates(templates)
        labels = checked_labels(labels)
        texts = [t.format(name) for name in (names or labels) for t in templates]
        parts = embed_texts(clip, texts).unflatten(0, (len(labels), -1))
        self._set(clip, labels, F.normalize(parts.mean(dim=1), dim=-1))

    @classmethod
    def of(cls, clip: CLIP, labels: Sequence[str], weight: Tensor) -> "ZeroShot":
        """One whose labels' embeddings [labels, E] are known already."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._set(clip, labels, weight)
        return made

    def _set(self, clip: CLIP, labels: Sequence[str], weight: Tensor) -> None:
        self.clip = clip
        self.labels = dict(enumerate(labels))
        self.preprocess = clip.preprocess
        self.config = ZeroShotConfig(len(labels))
        self.register_buffer("weight", weight, persistent=False)
        self.train(clip.training)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, h, w] -> logits [B, labels]."""
        weight = self.get_buffer("weight")
        return self.clip.logits(self.clip.encode_image(x, normalize=True), weight.to(x.dtype))


def embed_texts(clip: CLIP, texts: Sequence[str], *, batch_size: int = 64, normalize: bool = True) -> Tensor:
    """Embeddings [n, E], in the dtype of the model.

    Similar lengths are computed together, which changes no bit of the result: short texts cost less.
    """
    training = clip.training
    clip.eval()
    try:
        with torch.inference_mode():
            device = clip.logit_scale.device
            tokens = clip.tokenizer(texts)
            order = clip.text.pool_index(tokens).argsort(stable=True)
            out = torch.empty(len(texts), clip.config.embed_dim, dtype=clip.logit_scale.dtype, device=device)
            for places in order.split(max(1, batch_size)):
                out[places] = clip.encode_text(tokens[places].to(device), normalize=normalize)
    finally:
        clip.train(training)
    return out.clone()  # no inference tensor, so that it may be saved for a backward pass


def checked_labels(labels: Sequence[str]) -> list[str]:
    """The labels as a list; none, one twice, or a single string is an error."""
    if isinstance(labels, str):
        raise TypeError(f"labels: expected a list of names, got the string {labels!r}")
    found = list(labels)
    if not found:
        raise ValueError("labels: at least one is needed")
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise ValueError(f"labels: {', '.join(map(repr, twice))} given more than once")
    if not all(isinstance(name, str) and name.strip() for name in found):
        raise ValueError("labels: must be texts that are not empty")
    return found


def checked_templates(templates: str | Iterable[str]) -> tuple[str, ...]:
    """The templates; one without ``{}`` is an error."""
    found = (templates,) if isinstance(templates, str) else tuple(templates)
    if not found:
        raise ValueError("templates: at least one is needed")
    for template in found:
        try:
            fits = template.format("?") != template
        except (IndexError, KeyError, ValueError):
            fits = False
        if not fits:
            raise ValueError(f"templates: {template!r} must have one {{}} where the label goes")
    return found
