# SPDX-License-Identifier: Apache-2.0
"""Models, and how to make, load and save one by name."""

import fnmatch
from pathlib import Path
from typing import Any

from vision_accel._options import unknown_model
from vision_accel.models.autoencoder_config import VARIANTS, AutoencoderKLConfig
from vision_accel.models.autoencoder_kl import AutoencoderKL
from vision_accel.models.clip import CLIP
from vision_accel.models.clip_config import CLIPConfig, TextConfig, clip_variants
from vision_accel.models.device import choose_device
from vision_accel.models.pretrained import load, save
from vision_accel.models.vit import ViT
from vision_accel.models.vit_config import ViTConfig, variants

__all__ = [
    "CLIP",
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "CLIPConfig",
    "TextConfig",
    "ViT",
    "ViTConfig",
    "choose_device",
    "create_model",
    "list_models",
    "load",
    "save",
]


def list_models(pattern: str = "*") -> list[str]:
    """Names that :func:`create_model` takes, sorted; ``pattern`` is a shell-style filter (``vit_base*``).

    CLIPs have open_clip's names (``ViT-B-32``) or Hugging Face's (``clip_vit_base_patch32``).
    """
    return sorted(fnmatch.filter([*variants(), *clip_variants(), *VARIANTS], pattern))


def create_model(name: str, *, pretrained: str | Path | None = None, **overrides: Any) -> Any:
    """Make a model; its weights are drawn from torch's generator unless a file is given.

    Args:
        name: one of :func:`list_models`.
        pretrained: a file with the bare weights of a CLIP in open_clip's or OpenAI's names: safetensors,
            or a pickle of tensors (which is not executed). Directories are for :func:`load`.
        overrides: fields of its config to change, such as ``num_classes=10`` or ``img_size=(160, 320)``;
            of a CLIP also ``vision={"depth": 2}`` or ``**{"text.depth": 2}``.

    Raises:
        ValueError: unknown name, a value out of range, or weights that do not fit.
        TypeError: unknown field.
    """
    if name in clip_variants():
        return CLIP.create(name, pretrained, **overrides)
    if name in VARIANTS and pretrained is None:
        return AutoencoderKL(AutoencoderKLConfig.named(name, **overrides))
    if pretrained is not None:
        raise ValueError("pretrained: bare weight files are read for CLIP only; use va.load(directory)")
    if name not in variants():
        raise unknown_model(name, list_models())
    return ViT(ViTConfig.named(name, **overrides))
