# SPDX-License-Identifier: Apache-2.0
"""What every inference function asks of a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vision_accel.data.preprocess import Preprocess
from vision_accel.infer._images import Item


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode without gradients; its mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def lists_ahead(model: nn.Module) -> int:
    """How many batches to prepare ahead: on a CPU the model needs all cores itself."""
    return 0 if next(model.parameters()).device.type == "cpu" else 2


def stack(items: list[Item], model: nn.Module) -> Tensor:
    """[B, 3, h, w]: the good items on the device and in the dtype of the model."""
    pixels = [item.pixels for item in items if item.pixels is not None]
    shapes = {tuple(p.shape) for p in pixels}
    if len(shapes) > 1:
        raise ValueError(f"images: tensors of one batch must have one shape, got {sorted(shapes)}")
    weight = next(model.parameters())
    return torch.stack(pixels).to(device=weight.device, dtype=weight.dtype)


def preprocess_of(model: Any) -> Preprocess:
    """How pictures become the input of this model.

    Raises:
        ValueError: the model does not say.
    """
    preprocess: Preprocess | None = getattr(model, "preprocess", None)
    if preprocess is None:
        raise ValueError(
            "model: it does not say how images become its input; set model.preprocess ="
            " va.data.Preprocess(size=(height, width), mean=..., std=...)"
        )
    return preprocess
