# SPDX-License-Identifier: Apache-2.0
"""Two linear layers with an activation between them, as one op when they are trained."""

from typing import Any

import torch
from torch import Tensor

from vision_accel.ops import linear as _linear
from vision_accel.ops._register import register


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    activation: str = "gelu",
    residual: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """``linear(linear(x, weight1, bias1, activation), weight2, bias2, "none", residual, scale)``.

    While both weights are trained, the gradient by the hidden values is taken through the activation before
    it is stored, in the epilogue of the product that makes it.

    Args:
        x: [..., K], float32, float64, float16 or bfloat16.
        weight1: [M, K] in the dtype of x.
        bias1: [M] in the dtype of x.
        weight2: [N, M] in the dtype of x.
        bias2: [N] in the dtype of x.
        activation: none, gelu, gelu_tanh, quick_gelu or silu.
        residual: [..., N] in the dtype of x, or in float32 beside a 16-bit x; y then has its dtype.
        scale: [N] in the dtype of x or in float32, one factor per output feature (layer scale).

    Returns:
        y [..., N].

    Raises:
        ValueError: a shape or device does not match, or the activation is unknown.
        TypeError: a dtype does not match.

    Source: the feed-forward network of Vaswani et al. 2017, arXiv:1706.03762.
    """
    trained = torch.is_grad_enabled() and weight1.requires_grad and weight2.requires_grad
    if activation == "none" or not trained:
        hidden = _linear.linear(x, weight1, bias1, activation)
        return _linear.linear(hidden, weight2, bias2, residual=residual, scale=scale)
    m, n = weight1.shape[0], weight2.shape[0]
    _linear.check_arguments(x, weight1, bias1, None, None, m)
    _linear.check_arguments(x.new_empty(0, m), weight2, bias2, None, scale, n)
    if residual is not None and residual.shape != (*x.shape[:-1], n):
        raise ValueError(f"linear: residual must be {[*x.shape[:-1], n]}, got {list(residual.shape)}")
    save_product = scale is not None and scale.requires_grad
    return _forward(x, weight1, bias1, weight2, bias2, residual, scale, activation, save_product)[0]


def _run(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    activation: str,
    save_product: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    m, n = weight1.shape[0], weight2.shape[0]
    h, z = _linear._run(x, weight1, bias1, None, None, activation, 0, m, True, True)
    y, product = _linear._run(h, weight2, bias2, residual, scale, "none", 0, n, True, save_product)
    return y, z, h, product


def _fake(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    activation: str,
    save_product: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    h, z = _linear._outputs(x, None, weight1.shape[0], True)
    y, product = _linear._outputs(h, residual, weight2.shape[0], save_product)
    return y, z, h, product


def _grad_run(
    dy: Tensor,
    x: Tensor,
    weight1: Tensor,
    z: Tensor,
    h: Tensor,
    weight2: Tensor,
    product: Tensor | None,
    scale: Tensor | None,
    activation: str,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    (m, k), n = weight1.shape, weight2.shape[0]
    need_x, need_bias1, need_bias2, need_scale = needs
    dz, dweight2, dbias2, dscale = _linear._grad_run(
        dy, h, weight2, product, scale, [n, m], x.dtype, "none", 0, n, [True, True, need_bias2, need_scale],
        z, activation,
    )  # fmt: skip
    dx, dweight1, dbias1, _ = _linear._grad_run(
        dz, x, weight1, None, None, [m, k], x.dtype, "none", 0, m, [need_x, True, need_bias1, False]
    )
    return dx, dweight1, dbias1, dweight2, dbias2, dscale


def _grad_fake(
    dy: Tensor,
    x: Tensor,
    weight1: Tensor,
    z: Tensor,
    h: Tensor,
    weight2: Tensor,
    product: Tensor | None,
    scale: Tensor | None,
    activation: str,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    need_x, need_bias1, need_bias2, need_scale = needs
    _, *second = _linear._grad_outputs(
        dy, list(weight2.shape), x.dtype, [False, True, need_bias2, need_scale]
    )
    first = _linear._grad_outputs(h, list(weight1.shape), x.dtype, [need_x, True, need_bias1, False])
    return *first[:3], *second


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight1, bias1, weight2, bias2, _, scale, activation, save_product = inputs
    _, z, h, product = output
    ctx.save_for_backward(x, weight1, z, h, weight2, product if save_product else None, scale)
    ctx.mark_non_differentiable(z, h, product)
    ctx.set_materialize_grads(False)
    ctx.activation, ctx.dtypes = activation, [None if b is None else b.dtype for b in (bias1, bias2, scale)]


def _backward(ctx: Any, dy: Tensor | None, *_rest: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 9
    need_x, _, need_bias1, _, need_bias2, need_residual, need_scale = ctx.needs_input_grad[:7]
    needs = [need_x, need_bias1, need_bias2, need_scale]
    dx, dweight1, dbias1, dweight2, dbias2, dscale = _grad(dy, *ctx.saved_tensors, ctx.activation, needs)
    sums = (dbias1, dbias2, dscale)
    dbias1, dbias2, dscale = (
        v.to(dtype) if need else None for v, dtype, need in zip(sums, ctx.dtypes, needs[1:], strict=True)
    )
    dx = dx if need_x else None
    return dx, dweight1, dbias1, dweight2, dbias2, dy if need_residual else None, dscale, None, None


_forward = register(
    "mlp",
    "(Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, Tensor? residual,"
    " Tensor? scale, str activation, bool save_product)"
    " -> (Tensor y, Tensor z, Tensor hidden, Tensor product)",
    _run,
    _fake,
    _backward,
    _setup_context,
    autocast=(0, 1, 2, 3, 4),
)
_grad = register(
    "mlp_backward",
    "(Tensor dy, Tensor x, Tensor weight1, Tensor z, Tensor hidden, Tensor weight2, Tensor? product,"
    " Tensor? scale, str activation, bool[] needs)"
    " -> (Tensor dx, Tensor dweight1, Tensor dbias1, Tensor dweight2, Tensor dbias2, Tensor dscale)",
    _grad_run,
    _grad_fake,
)
