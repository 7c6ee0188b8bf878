# SPDX-License-Identifier: Apache-2.0
"""The libraries that models are compared with, made importable on a machine with torch for the CPU only.

timm and open_clip import torchvision, and transformers does when it is installed. It has no build for the
CPU alone; of its compiled part, its Python code needs two operators to be declared when it is imported.
"""

from typing import Any

import pytest
import torch


def _declare_torchvision_operators() -> torch.library.Library | None:
    if hasattr(torch.ops.torchvision, "nms"):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


_LIBRARY = _declare_torchvision_operators()  # lives as long as the process, or the operators go away


def timm() -> Any:
    """The timm module; skips the test where it is not installed."""
    pytest.importorskip("torchvision")
    return pytest.importorskip("timm")


def transformers() -> Any:
    """The transformers module; skips the test where it is not installed."""
    return pytest.importorskip("transformers")


def open_clip() -> Any:
    """The open_clip module; skips the test where it is not installed."""
    pytest.importorskip("torchvision")
    return pytest.importorskip("open_clip")


def diffusers() -> Any:
    """The diffusers module; skips the test where it is not installed."""
    return pytest.importorskip("diffusers")
