# SPDX-License-Identifier: Apache-2.0
"""Models, and how to make, load and save one by name."""

import fnmatch
from typing import Any

from vision_accel.models.pretrained import load, save
from vision_accel.models.vit import ViT
from vision_accel.models.vit_config import ViTConfig, variants

__all__ = ["ViT", "ViTConfig", "create_model", "list_models", "load", "save"]


def list_models(pattern: str = "*") -> list[str]:
    """Names that :func:`create_model` takes, sorted; ``pattern`` is a shell-style filter (``vit_base*``)."""
    return sorted(fnmatch.filter(variants(), pattern))


def create_model(name: str, **overrides: Any) -> ViT:
    """Make a model with random weights, drawn from torch's generator.

    Args:
        name: one of :func:`list_models`.
        overrides: fields of its config to change, such as ``num_classes=10`` or ``img_size=(160, 320)``.

    Raises:
        ValueError: unknown name or a value out of range.
        TypeError: unknown field.
    """
    return ViT(ViTConfig.named(name, **overrides))
