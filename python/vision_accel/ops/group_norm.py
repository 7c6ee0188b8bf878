# SPDX-License-Identifier: Apache-2.0
"""Group normalisation of channels-last images, with an activation behind it."""

from typing import Any

import torch
from torch import Tensor

from vision_accel import _C
from vision_accel.ops._layout import autocasts, check_out, statistics_dtype, stream_of
from vision_accel.ops._register import register


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-6,
    activation: str = "none",
    *,
    statistics: tuple[Tensor, Tensor] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``act(group_norm(x))``: mean and variance over all pixels and the channels of a group.

    Statistics are float32 (float64 for float64 inputs) whatever the dtype.

    Args:
        x: [B, ..., C], channels last, float32, float64, float16 or bfloat16.
        groups: number of groups G; divides C.
        weight: [C] in the dtype of x, or in 16 bits beside a float32 x; the result then has its dtype. Under
            ``torch.autocast`` it is converted to the dtype of a 16-bit x.
        bias: [C] like weight.
        eps: added to the variance.
        activation: none, gelu, gelu_tanh, quick_gelu or silu.
        statistics: mean and variance [B, G] to use, as of :func:`group_norm_statistics`: for a part of an
            image that is normalised like the whole. Not differentiable.
        out: where to write the result, contiguous; with ``statistics`` only.

    Returns:
        [B, ..., C] in the dtype of the weight.

    Raises:
        ValueError: a shape or device does not match.
        TypeError: a dtype does not match.

    Source: Wu & He 2018, arXiv:1803.08494; ``torch.nn.functional.group_norm``.
    """
    _check(x, groups)
    for name, v in (("weight", weight), ("bias", bias)):
        if v.shape != x.shape[-1:]:
            raise ValueError(f"group_norm: {name} must be [{x.shape[-1]}], got {list(v.shape)}")
    if autocasts(x) and x.dtype in (torch.float16, torch.bfloat16):
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)  # statistics are float32 anyway
    if statistics is not None:
        if out is not None:
            check_out("group_norm", out, x.shape, x)
        return _apply(x, *statistics, weight, bias, eps, activation, out=out)
    if out is not None:
        raise ValueError("group_norm: out is for given statistics only")
    return _forward(x, weight, bias, groups, eps, activation)[0]


def group_norm_statistics(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and (population) variance of every group, without the normalisation.

    Args:
        x: [B, ..., C], channels last, float32, float64, float16 or bfloat16.
        groups: number of groups G; divides C.

    Returns:
        mean and variance, [B, G] float32 (float64 for float64 inputs).

    Raises:
        ValueError: the groups do not divide the channels.
    """
    _check(x, groups)
    return _statistics(x, groups)


def _check(x: Tensor, groups: int) -> None:
    if x.ndim < 2:
        raise ValueError(f"group_norm: x must be [B, ..., C], got {list(x.shape)}")
    if groups < 1 or x.shape[-1] % groups:
        raise ValueError(f"group_norm: groups must divide the {x.shape[-1]} channels, got {groups}")


def _pixels(x: Tensor) -> Tensor:
    """[B, P, C], contiguous."""
    return x.contiguous().view(x.shape[0], x.shape[1:-1].numel(), x.shape[-1])


def _statistics_outputs(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    mean = x.new_zeros((x.shape[0], groups), dtype=statistics_dtype(x))
    return mean, torch.zeros_like(mean)


def _statistics_run(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    outputs = mean, variance = _statistics_outputs(x, groups)
    pixels = _pixels(x)
    b, p, c = pixels.shape
    work = mean.new_empty(b, _C.group_norm_parts(p, c), 2, groups)
    _C.group_norm_statistics(pixels, mean, variance, work, stream_of(x))
    return outputs


def _apply_run(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    activation: str,
    out: Tensor | None = None,
) -> Tensor:
    y = _apply_fake(x, mean, variance, weight, bias, eps, activation) if out is None else out
    pixels, weight, bias = _pixels(y), weight.contiguous(), bias.contiguous()
    _C.group_norm_forward(_pixels(x), mean, variance, weight, bias, pixels, activation, eps, stream_of(x))
    return y


def _apply_fake(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float, activation: str
) -> Tensor:
    return x.new_empty(x.shape, dtype=weight.dtype)


def _run(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance = _statistics_run(x, groups)
    return _apply_run(x, mean, variance, weight, bias, eps, activation), mean, variance


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=weight.dtype), *_statistics_outputs(x, groups)


def _grad_outputs(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dweight = x.new_empty(x.shape[-1], dtype=statistics_dtype(x))
    return x.new_empty(x.shape), dweight, torch.empty_like(dweight)


def _grad_run(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = dx, dweight, dbias = _grad_outputs(x)
    pixels, dys = _pixels(x), _pixels(dy)
    b, p, c = pixels.shape
    work = mean.new_empty(b, _C.group_norm_parts(p, c), 2, c)
    _C.group_norm_backward(
        dys,
        pixels,
        mean,
        variance,
        weight.contiguous(),
        bias.contiguous(),
        dx.view(pixels.shape),
        dweight,
        dbias,
        work,
        activation,
        eps,
        stream_of(x),
    )
    return outputs


def _grad_fake(dy: Tensor, x: Tensor, *_rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _grad_outputs(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, _, ctx.eps, ctx.activation = inputs
    ctx.save_for_backward(x, *output[1:], weight, bias)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, dy: Tensor, _dmean: Tensor, _dvariance: Tensor) -> tuple[Tensor | None, ...]:
    saved = *_, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = _grad(dy, *saved, ctx.eps, ctx.activation)
    return dx, dweight.to(weight.dtype), dbias.to(bias.dtype), None, None, None


_forward = register(
    "group_norm",
    "(Tensor x, Tensor weight, Tensor bias, int groups, float eps, str activation)"
    " -> (Tensor y, Tensor mean, Tensor variance)",
    _run,
    _fake,
    _backward,
    _setup_context,
)
_grad = register(
    "group_norm_backward",
    "(Tensor dy, Tensor x, Tensor mean, Tensor variance, Tensor weight, Tensor bias, float eps,"
    " str activation) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    _grad_run,
    _grad_fake,
)
_statistics = register(
    "group_norm_statistics",
    "(Tensor x, int groups) -> (Tensor mean, Tensor variance)",
    _statistics_run,
    _statistics_outputs,
)
_apply = register(
    "group_norm_apply",
    "(Tensor x, Tensor mean, Tensor variance, Tensor weight, Tensor bias, float eps, str activation)"
    " -> Tensor",
    _apply_run,
    _apply_fake,
)
