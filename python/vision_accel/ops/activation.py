# SPDX-License-Identifier: Apache-2.0
"""Elementwise activation functions."""

from typing import Any

import torch
from torch import Tensor

from vision_accel import _C
from vision_accel.ops._layout import stream_of
from vision_accel.ops._register import register


def activation(x: Tensor, kind: str) -> Tensor:
    """Apply an activation function to every element.

    Args:
        x: any shape, float32, float64, float16 or bfloat16.
        kind: ``"none"``; ``"gelu"``, ``x Phi(x)`` with the normal distribution function Phi; ``"gelu_tanh"``,
            its tanh approximation; ``"quick_gelu"``, ``x sigmoid(1.702 x)``; ``"silu"``, ``x sigmoid(x)``.

    Returns:
        y shaped like x; ``"none"`` returns x itself.

    Raises:
        ValueError: kind is not one of these.
        TypeError: x is not a floating tensor.

    Source: Hendrycks & Gimpel 2016, arXiv:1606.08415; ``torch.nn.functional.gelu`` and ``silu``.
    """
    if kind == "none":
        return x
    y: Tensor = _forward(x, kind)
    return y


def _like(x: Tensor, layout: Tensor) -> Tensor:
    """``x`` in memory as ``layout``, which has no holes."""
    return x if x.stride() == layout.stride() else torch.empty_like(layout).copy_(x)


def _run(x: Tensor, kind: str) -> Tensor:
    y = torch.empty_like(x)  # keeps the order of axes, drops holes
    _C.activation_forward(_like(x, y), y, kind, stream_of(x))
    return y


def _fake(x: Tensor, _kind: str) -> Tensor:
    return torch.empty_like(x)


def _grad_run(dy: Tensor, x: Tensor, kind: str) -> Tensor:
    dx = torch.empty_like(x)
    _C.activation_backward(_like(dy, dx), _like(x, dx), dx, kind, stream_of(x))
    return dx


def _grad_fake(_dy: Tensor, x: Tensor, _kind: str) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.kind = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    return _grad(dy, x, ctx.kind), None


_forward = register("activation", "(Tensor x, str kind) -> Tensor", _run, _fake, _backward, _setup_context)
_grad = register("activation_backward", "(Tensor dy, Tensor x, str kind) -> Tensor", _grad_run, _grad_fake)
