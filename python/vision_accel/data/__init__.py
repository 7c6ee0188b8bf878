# SPDX-License-Identifier: Apache-2.0
"""Image sources, preprocessing, augmentation, samplers."""

from importlib import import_module
from typing import Any

_LAZY = {"ImageError": "images", "Preprocess": "preprocess", "load_image": "images"}

__all__ = [*_LAZY]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
