# SPDX-License-Identifier: Apache-2.0
"""Layer normalisation, with an optional residual addition in front of it."""

from typing import Any, overload

import torch
from torch import Tensor

from vision_accel import _C
from vision_accel.ops._layout import dense_rows, dense_vector, statistics_dtype, stream_of
from vision_accel.ops._register import register


@overload
def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = ...) -> Tensor: ...
@overload
def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = ..., *, residual: Tensor
) -> tuple[Tensor, Tensor]: ...
def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float = 1e-6,
    *,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise the last axis: ``(s - mean) / sqrt(var + eps) * weight + bias``.

    ``s`` is ``x``, or ``x + residual`` when a residual is given. Statistics are accumulated in float32
    (float64 for float64 inputs) whatever the dtype.

    Args:
        x: [..., C], float32, float64, float16 or bfloat16.
        weight: [C] in the dtype of x, or None for 1.
        bias: [C] in the dtype of x, or None for 0.
        eps: added to the variance.
        residual: [..., C] like x.

    Returns:
        y [..., C]; with a residual, the pair ``(y, s)``.

    Raises:
        ValueError: a shape or device does not match.
        TypeError: a dtype does not match.

    Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450; ``torch.nn.functional.layer_norm``.
    """
    if x.ndim == 0:
        raise ValueError("layer_norm: x must have at least 1 dimension, got a scalar")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"layer_norm: residual must be {list(x.shape)}, got {list(residual.shape)}")
    y, s, _, _ = _forward(x, residual, weight, bias, eps)
    return y if residual is None else (y, s)


def _outputs(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, s (empty without a residual), mean and rstd: shapes of the real and the fake op."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    s = x.new_empty(0) if residual is None else torch.empty_like(y)
    mean = torch.empty(x.shape[:-1], dtype=statistics_dtype(x), device=x.device)
    return y, s, mean, torch.empty_like(mean)


def _run(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, s, mean, rstd = outputs = _outputs(x, residual)
    if x.numel():
        added = (None, None) if residual is None else (dense_rows(residual), s)
        weight, bias = dense_vector(weight), dense_vector(bias)
        _C.layer_norm_forward(
            dense_rows(x), added[0], weight, bias, y, added[1], mean, rstd, eps, stream_of(x)
        )
    return outputs


def _fake(
    x: Tensor, residual: Tensor | None, _weight: Tensor | None, _bias: Tensor | None, _eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(x, residual)


def _grad_outputs(dy: Tensor, weight: Tensor | None, has_bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight and dbias (empty where there is no parameter)."""
    dim, stats = dy.shape[-1], statistics_dtype(dy)
    return (
        torch.empty_like(dy, memory_format=torch.contiguous_format),
        dy.new_empty(0 if weight is None else dim, dtype=stats),
        dy.new_empty(dim if has_bias else 0, dtype=stats),
    )


def _grad_workspace(dy: Tensor) -> Tensor:
    dim = dy.shape[-1]
    parts = _C.layer_norm_parts(dy, dy.numel() // dim)
    return dy.new_empty((parts, 2, dim), dtype=statistics_dtype(dy))


def _grad_run(
    dy: Tensor,
    s: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    dsum: Tensor | None,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = _grad_outputs(dy, weight, has_bias)
    if dy.numel():
        sums = weight is not None or has_bias
        _C.layer_norm_backward(
            dense_rows(dy),
            dense_rows(s),
            dense_vector(weight),
            mean,
            rstd,
            None if dsum is None else dense_rows(dsum),
            dx,
            None if weight is None else dweight,
            dbias if has_bias else None,
            _grad_workspace(dy) if sums else None,
            stream_of(dy),
        )
    else:
        dweight.zero_(), dbias.zero_()
    return dx, dweight.to(dy.dtype), dbias.to(dy.dtype)


def _grad_fake(
    dy: Tensor,
    _s: Tensor,
    weight: Tensor | None,
    _mean: Tensor,
    _rstd: Tensor,
    _dsum: Tensor | None,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = _grad_outputs(dy, weight, has_bias)
    return dx, dweight.to(dy.dtype), dbias.to(dy.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, weight, bias, _ = inputs
    _, s, mean, rstd = output
    ctx.save_for_backward(x if residual is None else s, weight, mean, rstd)
    ctx.has_residual, ctx.has_bias = residual is not None, bias is not None
    ctx.mark_non_differentiable(mean, rstd)


def _backward(ctx: Any, dy: Tensor, dsum: Tensor, _mean: Tensor, _rstd: Tensor) -> tuple[Tensor | None, ...]:
    s, weight, mean, rstd = ctx.saved_tensors
    dx, dweight, dbias = _grad(dy, s, weight, mean, rstd, dsum if ctx.has_residual else None, ctx.has_bias)
    return (
        dx,
        dx if ctx.has_residual else None,
        None if weight is None else dweight,
        dbias if ctx.has_bias else None,
        None,
    )


_forward = register(
    "layer_norm",
    "(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, float eps)"
    " -> (Tensor y, Tensor s, Tensor mean, Tensor rstd)",
    _run,
    _fake,
    _backward,
    _setup_context,
)
_grad = register(
    "layer_norm_backward",
    "(Tensor dy, Tensor s, Tensor? weight, Tensor mean, Tensor rstd, Tensor? dsum, bool has_bias)"
    " -> (Tensor dx, Tensor dweight, Tensor dbias)",
    _grad_run,
    _grad_fake,
)
