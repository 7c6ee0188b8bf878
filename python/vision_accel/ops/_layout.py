# SPDX-License-Identifier: Apache-2.0
"""How tensors are handed to the C++ core."""

from collections.abc import Sequence

import torch
from torch import Tensor


def dense_rows(x: Tensor) -> Tensor:
    """``x`` if the core can read it as [rows, C] with a contiguous last axis, else a contiguous copy."""
    if x.is_contiguous() or (x.ndim == 2 and x.stride(1) == 1):
        return x
    return x.contiguous()


def dense_vector(v: Tensor | None) -> Tensor | None:
    """A parameter [C], contiguous."""
    return v if v is None else v.contiguous()


def stream_of(x: Tensor) -> int:
    """The CUDA stream that work on ``x`` belongs to, as an integer; 0 on the CPU."""
    return torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0


def product_options(x: Tensor) -> tuple[bool, bool]:
    """What torch is set to for matrix products of ``x`` on a GPU.

    Whether float32 may be rounded to tf32, and whether a row's bits must not depend on the other rows.
    """
    if not x.is_cuda:
        return False, False
    tf32 = x.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return tf32, torch.are_deterministic_algorithms_enabled()


def autocasts(x: Tensor) -> bool:
    """Whether ``torch.autocast`` is on for the device of ``x``."""
    return x.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(x.device.type)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a product of ``x`` runs in: its own, unless ``torch.autocast`` says otherwise."""
    return torch.get_autocast_dtype(x.device.type) if autocasts(x) and x.dtype != torch.float64 else x.dtype


def check_out(op: str, out: Tensor, shape: Sequence[int], like: Tensor) -> None:
    """Refuse an ``out`` of another shape or device, or one whose pixels are not dense."""
    if list(out.shape) != list(shape) or out.device != like.device or not out.is_contiguous():
        raise ValueError(
            f"{op}: out must be {list(shape)}, contiguous and on {like.device}, got {list(out.shape)}"
        )


def statistics_dtype(x: Tensor) -> torch.dtype:
    """The dtype of statistics and parameter-gradient sums: float64 for float64 inputs, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
