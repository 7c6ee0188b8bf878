# SPDX-License-Identifier: Apache-2.0
"""Nearest-neighbour upsampling to twice the size and the 3 x 3 convolution behind it, as one op."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vision_accel import _C
from vision_accel.ops import _winograd
from vision_accel.ops._layout import check_out, dense_vector, statistics_dtype, stream_of
from vision_accel.ops._register import register
from vision_accel.ops.conv2d import (
    allows_tf32,
    backward_weight,
    beside,
    check_float,
    dense,
    grad_outputs,
    pack,
    pack_points,
    sum_pixels,
)


def upsample_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    borders: tuple[bool, bool] = (True, True),
    out: Tensor | None = None,
) -> Tensor:
    """``conv2d(upsample(x), weight, bias, padding=1)`` with a nearest-neighbour upsampling to twice the size.

    Each of the four pixels that come of one pixel of x sees only 2 x 2 different pixels of x, so that the
    3 x 3 kernel folds into four 2 x 2 kernels of sums of its taps: 16 products instead of 36.

    Args:
        x: [B, h, w, C], channels last, float32, float64, float16 or bfloat16.
        weight: [N, C, 3, 3] in the dtype of x, or in 16 bits beside a float32 x.
        bias: [N] in the dtype of the weight.
        borders: whether the first and the last row of x are those of the image. Where not, they are
            neighbours of the rows that are asked for, and have no rows in the result.
        out: where to write the result, contiguous. Without gradients.

    Returns:
        [B, 2 h, 2 w, N] in the dtype of x; two rows less for each border that is none.

    Raises:
        ValueError: a shape or device does not match.
        TypeError: a dtype does not match.

    Source: the sub-pixel view of Shi et al. 2016, arXiv:1609.05158.
    """
    if x.ndim != 4:
        raise ValueError(f"upsample_conv2d: x must be [B, h, w, C], got {list(x.shape)}")
    check_float("upsample_conv2d", x)
    if weight.shape[1:] != (x.shape[3], 3, 3):
        raise ValueError(f"upsample_conv2d: weight must be [N, {x.shape[3]}, 3, 3], got {list(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"upsample_conv2d: bias must be [{weight.shape[0]}], got {list(bias.shape)}")
    if x.shape[1] < 2 - sum(borders):
        raise ValueError(f"upsample_conv2d: x {list(x.shape)} has no rows but the neighbours")
    weight, bias = beside(x, weight), None if bias is None else beside(x, bias)
    train = torch.is_grad_enabled() and weight.requires_grad
    if out is not None:
        check_out("upsample_conv2d", out, _upsample_shape(x, weight, *borders), x)
    return _upsample_forward(x, weight, bias, train, *borders, out=out)


# Row 2 v + p of the result reads the rows v + p - 1 and v + p of x: those of taps {0} and {1, 2} for p = 0,
# of {0, 1} and {2} for p = 1. Likewise for columns.

_TAPS = ((slice(0, 1), slice(1, 3)), (slice(0, 2), slice(2, 3)))


def _fold(weight: Tensor) -> Tensor:
    """The kernels of the four phases: [2, 2, N, 2 * 2 * C] from [N, C, 3, 3]."""
    wide = weight.to(statistics_dtype(weight))
    rows = torch.stack([torch.stack([wide[:, :, t].sum(2) for t in pair], 2) for pair in _TAPS])
    both = torch.stack([torch.stack([rows[..., t].sum(4) for t in pair], 4) for pair in _TAPS], 1)
    return both.permute(0, 1, 2, 4, 5, 3).flatten(3).to(weight.dtype)


def _unfold(folded: Tensor) -> Tensor:
    """The transpose of ``_fold``: [2, 2, N, 2, 2, C] summed into [N, C, 3, 3] (channels last in memory)."""
    _, _, n, _, _, c = folded.shape
    out = folded.new_zeros(n, 3, 3, c)
    for p in range(2):
        for q in range(2):
            for i, rows in enumerate(_TAPS[p]):
                for j, cols in enumerate(_TAPS[q]):
                    out[:, rows, cols] += folded[p, q, :, i, j][:, None, None]
    return out.permute(0, 3, 1, 2)


def _upsample_shape(x: Tensor, weight: Tensor, above: bool, below: bool) -> list[int]:
    b, h, w, _ = x.shape
    return [b, 2 * (h - 2 + above + below), 2 * w, weight.shape[0]]


def _upsample_run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    train: bool,
    above: bool,
    below: bool,
    out: Tensor | None = None,
) -> Tensor:
    y = _upsample_fake(x, weight, bias, train, above, below) if out is None else out
    x, bias = dense(x), dense_vector(bias)
    if _winograd.suits(x, weight.shape, 1, y.shape[1:3].numel() if train else None):
        points = pack_points(x, weight, train, upsample=True)
        _C.conv2d_winograd(x, points, bias, None, y, "none", (int(above), 1), True)
        return y
    matrix, packed = pack(x, weight, train, "upsample_conv2d", _fold)
    stream, tf32 = stream_of(x), allows_tf32(x, weight)
    for p in range(2):
        for q in range(2):
            m, k = (None if v is None else v[p, q] for v in (matrix, packed))
            phase = y[:, p::2, q::2]
            rows, corner = (x, int(above) - p) if above or not p else (x[:, 1:], 0)
            _C.conv2d_forward(rows, m, k, bias, None, phase, "none", (2, 2), 1, (corner, 1 - q), stream, tf32)
    return y


def _upsample_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, train: bool, above: bool, below: bool
) -> Tensor:
    return x.new_empty(_upsample_shape(x, weight, above, below))


def _upsample_grad_run(
    dy: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    x_shape: list[int],
    weight_shape: list[int],
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = dx, dweight, dbias = grad_outputs(dy, x_shape, weight_shape, dy.dtype, needs)
    dy = dense(dy)
    n, c = weight_shape[:2]
    if needs[0] and weight is not None:
        # A pixel of x has its share in 4 x 4 pixels of the result: one convolution of stride 2.
        wide = weight.to(statistics_dtype(weight))
        kernel = wide.new_zeros(c, 4, 4, n)
        taps = wide.permute(1, 2, 3, 0)
        for i in range(2):
            for j in range(2):
                kernel[:, i : i + 3, j : j + 3] += taps.flip(1, 2)
        matrix = kernel.to(dy.dtype).flatten(1)
        stream, tf32 = stream_of(dy), allows_tf32(dy, weight)
        _C.conv2d_forward(dy, matrix, None, None, None, dx, "none", (4, 4), 2, (1, 1), stream, tf32)
    winograd = needs[1] and _winograd.suits(dy, weight_shape, 1)
    if x is not None and winograd:
        bias = dbias if needs[2] else None
        _winograd.backward_weight(dy, dense(x), dweight, bias, (1, 1), upsample=True)
    elif x is not None and needs[1]:
        folded = dy.new_empty(2, 2, n, 2, 2, c)
        for p in range(2):
            for q in range(2):
                phase, matrix = dy[:, p::2, q::2], folded[p, q].flatten(1)
                backward_weight(phase, x, matrix, (2, 2), 1, (1 - p, 1 - q))
        dweight.copy_(_unfold(folded.to(statistics_dtype(folded))))
    if needs[2] and not winograd:
        sum_pixels(dy, dbias)
    return outputs


def _upsample_grad_fake(
    dy: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    x_shape: list[int],
    weight_shape: list[int],
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return grad_outputs(dy, x_shape, weight_shape, dy.dtype, needs)


def _upsample_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, _, above, below = inputs
    need_x, need_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if need_weight else None, weight if need_x else None)
    ctx.x_shape, ctx.weight_shape = list(x.shape), list(weight.shape)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.unseen = (0, 0, 0, 0, 2 * (1 - above), 2 * (1 - below))  # rows that the result has not


def _upsample_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:3])
    dy = pad(dy, ctx.unseen) if any(ctx.unseen) else dy
    grads = _upsample_grad(dy, *ctx.saved_tensors, ctx.x_shape, ctx.weight_shape, needs)
    dx, dweight, dbias = (g if need else None for g, need in zip(grads, needs, strict=True))
    return dx, dweight, None if dbias is None else dbias.to(ctx.bias_dtype), None, None, None


_upsample_forward = register(
    "upsample_conv2d",
    "(Tensor x, Tensor weight, Tensor? bias, bool train, bool above, bool below) -> Tensor",
    _upsample_run,
    _upsample_fake,
    _upsample_backward,
    _upsample_setup,
    autocast=(0, 1, 2),
)
_upsample_grad = register(
    "upsample_conv2d_backward",
    "(Tensor dy, Tensor? x, Tensor? weight, SymInt[] x_shape, SymInt[] weight_shape, bool[] needs)"
    " -> (Tensor dx, Tensor dweight, Tensor dbias)",
    _upsample_grad_run,
    _upsample_grad_fake,
)
