# SPDX-License-Identifier: Apache-2.0
"""The one place that touches torch.library: how an op becomes known to torch.

``Library.define`` and ``impl`` rather than ``custom_op``, whose cost per call is several times higher.
Registered ops work under autograd, ``torch.compile``, ``torch.export`` and CUDA graphs.
"""

from collections.abc import Callable
from typing import Any

import torch

_LIB = torch.library.Library("vision_accel", "DEF")


def register(
    name: str,
    schema: str,
    impl: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Any:
    """Register ``vision_accel::<name>`` and return its callable.

    Args:
        name: the op's name.
        schema: its arguments and results in torch's schema language, without the name.
        impl: the implementation for CPU and CUDA tensors.
        fake: computes empty outputs of the right shape, dtype and device from fake inputs.
        backward: ``backward(ctx, *grads)``, gradients in the order of the inputs.
        setup_context: ``setup_context(ctx, inputs, output)``, saves what backward needs.
    """
    qualified = f"vision_accel::{name}"
    _LIB.define(name + schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    for key in ("CPU", "CUDA"):
        _LIB.impl(name, impl, key)
    torch.library.register_fake(qualified, fake, lib=_LIB)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_LIB)
    return getattr(torch.ops.vision_accel, name).default


def stream_of(x: torch.Tensor) -> int:
    """The CUDA stream that work on ``x`` belongs to, as an integer; 0 on the CPU."""
    return torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0


def statistics_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of statistics and parameter-gradient sums: float64 for float64 inputs, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
