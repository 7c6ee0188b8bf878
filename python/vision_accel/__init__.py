# SPDX-License-Identifier: Apache-2.0
"""vision_accel: ViT, CLIP and AutoencoderKL, trained and run fast and exactly.

``import vision_accel as va`` needs neither torch nor a GPU; names that do are imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vision_accel import _C
from vision_accel._info import info

if TYPE_CHECKING:
    from vision_accel import ops as ops

__version__: str = _C.version()

# Public name -> the module that defines it.
_LAZY: dict[str, str] = {
    "AutoencoderKL": "vision_accel.models",
    "CLIP": "vision_accel.models",
    "ViT": "vision_accel.models",
    "classify": "vision_accel.infer",
    "create_model": "vision_accel.models",
    "embed": "vision_accel.infer",
    "embed_text": "vision_accel.infer",
    "list_models": "vision_accel.models",
    "load": "vision_accel.models",
    "reconstruct": "vision_accel.infer",
    "save": "vision_accel.models",
    "search": "vision_accel.infer",
    "similarity": "vision_accel.infer",
    "zero_shot": "vision_accel.infer",
}
_SUBMODULES = ("data", "infer", "io", "models", "nn", "ops", "testing", "train")

__all__ = ["__version__", "info", *_LAZY]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
    elif name in _SUBMODULES:
        value = import_module(f"vision_accel.{name}")
    else:
        raise AttributeError(f"module 'vision_accel' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, *_SUBMODULES])
