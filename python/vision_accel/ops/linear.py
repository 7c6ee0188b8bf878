# SPDX-License-Identifier: Apache-2.0
"""Matrix product with bias, activation, layer scale and residual in its epilogue."""

import math
from typing import Any

import torch
from torch import Tensor

from vision_accel import _C
from vision_accel.ops import _pack_cache
from vision_accel.ops._layout import dense_rows, dense_vector, product_options, statistics_dtype, stream_of
from vision_accel.ops._register import register


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    rows: tuple[int, int] | None = None,
) -> Tensor:
    """``residual + scale * act(x @ weight.T + bias)``, computed in float32 and rounded once.

    On the CPU, a weight that needs no gradient is kept in packed form between calls (see ``_pack_cache``).
    On a GPU, float32 products are exact unless ``torch.backends.cuda.matmul.allow_tf32``, and with
    ``torch.use_deterministic_algorithms`` a row's bits do not depend on the number of rows.

    Args:
        x: [..., K], float32, float64, float16 or bfloat16.
        weight: [N, K] in the dtype of x; trailing axes are taken as one (patch kernels [N, 3, h, w]).
        bias: [N] in the dtype of x.
        activation: none, gelu, gelu_tanh, quick_gelu or silu.
        residual: [..., N] in the dtype of x, or in float32 beside a 16-bit x; y then has its dtype.
        scale: [N] in the dtype of x or in float32, one factor per output feature (layer scale).
        rows: compute only the output features [begin, end). weight, bias and scale are given whole.

    Returns:
        y [..., N], with ``rows`` [..., end - begin].

    Raises:
        ValueError: a shape or device does not match, or the activation is unknown.
        TypeError: a dtype does not match.

    Source: ``torch.nn.functional.linear``; layer scale is Touvron et al. 2021, arXiv:2103.17239.
    """
    begin, end = (0, weight.shape[0]) if rows is None else rows
    if not 0 <= begin <= end <= weight.shape[0]:
        raise ValueError(f"linear: rows must lie in [0, {weight.shape[0]}], got {rows}")
    check_arguments(x, weight, bias, residual, scale, end - begin)
    train = save_z = False
    if torch.is_grad_enabled():
        train = weight.requires_grad
        save_z = scale is not None and scale.requires_grad
        if activation != "none":
            save_z = save_z or train or x.requires_grad or (bias is not None and bias.requires_grad)
    return _forward(x, weight, bias, residual, scale, activation, begin, end, train, save_z)[0]


def check_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, scale: Tensor | None, n: int
) -> None:
    """Check the shapes that go with ``n`` output features."""
    if x.ndim == 0:
        raise ValueError("linear: x must have at least 1 dimension, got a scalar")
    k = x.shape[-1]
    if weight.ndim < 2 or (weight.shape[1] if weight.ndim == 2 else weight.shape[1:].numel()) != k:
        raise ValueError(
            f"linear: weight must be [N, {k}] to go with x {list(x.shape)}, got {list(weight.shape)}"
        )
    for name, v in (("bias", bias), ("scale", scale)):
        if v is not None and (v.ndim != 1 or v.shape[0] != weight.shape[0]):
            raise ValueError(f"linear: {name} must be [{weight.shape[0]}], got {list(v.shape)}")
    if residual is not None and residual.shape != (*x.shape[:-1], n):
        raise ValueError(f"linear: residual must be {[*x.shape[:-1], n]}, got {list(residual.shape)}")


def _outputs(x: Tensor, residual: Tensor | None, n: int, save_z: bool) -> tuple[Tensor, Tensor]:
    """y, and z, the product with its bias (empty unless saved)."""
    shape = (*x.shape[:-1], n)
    y = x.new_empty(shape, dtype=x.dtype if residual is None else residual.dtype)
    return y, x.new_empty(shape if save_z else 0)


def _part(v: Tensor | None, begin: int, end: int) -> Tensor | None:
    return v if v is None or (begin == 0 and end == v.shape[0]) else v[begin:end]


def _matrix(weight: Tensor, begin: int, end: int) -> Tensor:
    part = weight if begin == 0 and end == weight.shape[0] else weight[begin:end]
    return part if part.ndim == 2 else part.flatten(1)


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    activation: str,
    begin: int,
    end: int,
    train: bool,
    save_z: bool,
) -> tuple[Tensor, Tensor]:
    y, z = outputs = _outputs(x, residual, end - begin, save_z)
    packed = None
    if train:
        _pack_cache.forget(weight)  # it is about to change
    elif not (x.is_cuda or weight.is_cuda):
        packed = _pack_cache.packed_weight(weight)
    _C.linear_forward(
        dense_rows(x),
        _matrix(weight, begin, end) if packed is None else None,
        packed,
        dense_vector(_part(bias, begin, end)),
        None if residual is None else dense_rows(residual),
        dense_vector(_part(scale, begin, end)),
        y,
        z if save_z else None,
        activation,
        begin,
        *product_options(x),
        stream_of(x),
    )
    return outputs


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    activation: str,
    begin: int,
    end: int,
    train: bool,
    save_z: bool,
) -> tuple[Tensor, Tensor]:
    return _outputs(x, residual, end - begin, save_z)


def _grad_outputs(
    dy: Tensor, weight_shape: list[int], dtype: torch.dtype, needs: list[bool]
) -> tuple[Tensor, ...]:
    """dx, dweight, dbias and dscale; empty where not needed."""
    n, k = weight_shape[0], math.prod(weight_shape[1:])
    sums = statistics_dtype(dy)
    return (
        dy.new_empty((*dy.shape[:-1], k) if needs[0] else 0, dtype=dtype),
        dy.new_empty(weight_shape if needs[1] else 0, dtype=dtype),
        dy.new_empty(n if needs[2] else 0, dtype=sums),
        dy.new_empty(n if needs[3] else 0, dtype=sums),
    )


def _grad_run(
    dy: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    z: Tensor | None,
    scale: Tensor | None,
    weight_shape: list[int],
    dtype: torch.dtype,
    activation: str,
    begin: int,
    end: int,
    needs: list[bool],
    before: Tensor | None = None,
    before_activation: str = "none",
) -> tuple[Tensor, ...]:
    # With `before`, where x = activation(before), dx is the gradient by that.
    outputs = _grad_outputs(dy, weight_shape, dtype, needs)
    parts: list[Tensor | None] = [None] * 4
    for i, out in enumerate(outputs):
        if needs[i]:
            parts[i] = out if i == 0 else _part(out, begin, end)
            if i > 0 and (begin > 0 or end < weight_shape[0]):
                out.zero_()
    dx, dweight, dbias, dscale = parts
    dy = dense_rows(dy)
    keeps_dy = activation == "none" and scale is None and dy.dtype == dtype
    sums, needs_dweight = dbias is not None or dscale is not None, dweight is not None
    dz = None if keeps_dy else torch.empty_like(dy, dtype=dtype, memory_format=torch.contiguous_format)
    k = math.prod(weight_shape[1:])
    scratch = _C.linear_workspace(dy, outputs[0], k, sums, needs_dweight)
    _C.linear_backward(
        dy,
        None if dweight is None or x is None else dense_rows(x),
        None if weight is None else _matrix(weight, begin, end),
        z,
        dense_vector(_part(scale, begin, end)),
        before,
        dz,
        dx,
        None if dweight is None else dweight.flatten(1),
        dbias,
        dscale,
        dy.new_empty(scratch, dtype=statistics_dtype(dy)) if scratch else None,
        activation,
        before_activation,
        *product_options(outputs[0]),
        stream_of(dy),
    )
    return outputs


def _grad_fake(
    dy: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    z: Tensor | None,
    scale: Tensor | None,
    weight_shape: list[int],
    dtype: torch.dtype,
    activation: str,
    begin: int,
    end: int,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    return _grad_outputs(dy, weight_shape, dtype, needs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, _, scale, activation, begin, end, _, save_z = inputs
    need_x, need_weight = ctx.needs_input_grad[:2]
    z = output[1]
    ctx.save_for_backward(
        x if need_weight else None, weight if need_x else None, z if save_z else None, scale
    )
    ctx.mark_non_differentiable(z)
    ctx.set_materialize_grads(False)
    ctx.weight_shape, ctx.dtype, ctx.bias_dtype = weight.shape, x.dtype, None if bias is None else bias.dtype
    ctx.activation, ctx.begin, ctx.end = activation, begin, end


def _backward(ctx: Any, dy: Tensor | None, _dz: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 10
    x, weight, z, scale = ctx.saved_tensors
    need_x, need_weight, need_bias, need_residual, need_scale = ctx.needs_input_grad[:5]
    grads = [None] * 4
    needs = [need_x, need_weight, need_bias, need_scale]
    if any(needs):
        grads = _grad(
            dy, x, weight, z, scale, ctx.weight_shape, ctx.dtype, ctx.activation, ctx.begin, ctx.end, needs
        )
    dx, dweight, dbias, dscale = (g if need else None for g, need in zip(grads, needs, strict=True))
    dbias = None if dbias is None else dbias.to(ctx.bias_dtype)
    dscale = None if dscale is None else dscale.to(scale.dtype)
    return (dx, dweight, dbias, dy if need_residual else None, dscale, *(None,) * 5)


_forward = register(
    "linear",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? scale, str activation,"
    " SymInt begin, SymInt end, bool train, bool save_z) -> (Tensor y, Tensor z)",
    _run,
    _fake,
    _backward,
    _setup_context,
    autocast=(0, 1, 2),
)
_grad = register(
    "linear_backward",
    "(Tensor dy, Tensor? x, Tensor? weight, Tensor? z, Tensor? scale, SymInt[] weight_shape,"
    " ScalarType dtype, str activation, SymInt begin, SymInt end, bool[] needs)"
    " -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dscale)",
    _grad_run,
    _grad_fake,
)
