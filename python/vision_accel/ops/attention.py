# SPDX-License-Identifier: Apache-2.0
"""Scaled dot-product attention of many heads, with separate or packed query, key and value."""

import math
from typing import Any

import torch
from torch import Tensor

from vision_accel import _C
from vision_accel.ops._layout import product_options, statistics_dtype, stream_of
from vision_accel.ops._register import register


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    key_padding: Tensor | None = None,
) -> Tensor:
    """``softmax(scale * q @ k^T + mask) @ v`` for every head, without storing all scores.

    Scores and statistics are float32 (float64 for float64 inputs) whatever the dtype. A query that sees no
    key at all gives zeros, as in flash attention (torch's ``scaled_dot_product_attention`` gives NaN with
    some masks), and passes no gradient.

    On a GPU head dims past 128, and float32 from 512 x 512 scores a head on, take up to 400 MB or so for the
    scores of some queries at a time; float32 is exact unless ``torch.backends.cuda.matmul.allow_tf32``.

    Args:
        q: [B, N, H, D], float32, float64, float16 or bfloat16, D at most 512. Any strides; the last axis is
            copied if it is not contiguous.
        k: [B, M, H, D] like q.
        v: [B, M, H, D] like q.
        causal: query i sees the keys j <= i + M - N (the last query sees all).
        scale: factor of the scores; None for ``D ** -0.5``.
        key_padding: [B, M] bool, True for keys that nobody may see.

    Returns:
        [B, N, H * D] in the dtype of q, heads side by side.

    Raises:
        ValueError: a shape or device does not match.
        TypeError: a dtype does not match.

    Source: Dao et al. 2022, arXiv:2205.14135; ``torch.nn.functional.scaled_dot_product_attention``.
    """
    if q.ndim != 4:
        raise ValueError(f"attention: q must be [B, N, H, D], got {list(q.shape)}")
    return _forward(q, k, v, key_padding, causal, _scale(scale, q.shape[-1]))[0]


def attention_qkv(
    qkv: Tensor,
    num_heads: int,
    *,
    causal: bool = False,
    scale: float | None = None,
    key_padding: Tensor | None = None,
) -> Tensor:
    """Self-attention of a packed projection; see :func:`attention`.

    Args:
        qkv: [B, N, 3 * H * D], the last axis laid out as (3, H, D) like timm's ``qkv`` projection. It is read
            in place, and its gradient is one tensor of the same shape.
        num_heads: H.
        causal: query i sees the keys j <= i.
        scale: factor of the scores; None for ``D ** -0.5``.
        key_padding: [B, N] bool, True for keys that nobody may see.

    Returns:
        [B, N, H * D] in the dtype of qkv.

    Raises:
        ValueError: a shape or device does not match.
        TypeError: a dtype does not match.
    """
    if qkv.ndim != 3 or num_heads < 1 or qkv.shape[-1] % (3 * num_heads):
        raise ValueError(
            f"attention_qkv: qkv must be [B, N, 3 * {num_heads} * D] for {num_heads} heads,"
            f" got {list(qkv.shape)}"
        )
    scale = _scale(scale, qkv.shape[-1] // (3 * num_heads))
    return _qkv_forward(qkv, num_heads, key_padding, causal, scale)[0]


def _scale(scale: float | None, head_dim: int) -> float:
    return 1 / math.sqrt(max(head_dim, 1)) if scale is None else float(scale)


def _last_axis_dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def _split(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views [B, N, H, D] of q, k and v."""
    b, n, c = qkv.shape
    q, k, v = qkv.view(b, n, 3, num_heads, c // (3 * num_heads)).unbind(2)
    return q, k, v


def _outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    """The result and the log-sum-exp of the scores: shapes of the real and the fake op."""
    b, n, h, d = q.shape
    return q.new_empty((b, n, h * d)), torch.empty((b, h, n), dtype=statistics_dtype(q), device=q.device)


def _workspace(q: Tensor, k: Tensor, backward: bool) -> Tensor | None:
    needed = _C.attention_workspace(q, k, backward)
    return q.new_empty(needed, dtype=torch.uint8) if needed else None


def _run(
    q: Tensor, k: Tensor, v: Tensor, key_padding: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    y, lse = _outputs(q)
    q, k, v = (_last_axis_dense(x) for x in (q, k, v))
    shared = _workspace(q, k, False), causal, scale, product_options(q)[0], stream_of(q)
    _C.attention_forward(q, k, v, key_padding, y.view(q.shape), lse, *shared)
    return y, lse


def _fake(
    q: Tensor, _k: Tensor, _v: Tensor, _key_padding: Tensor | None, _causal: bool, _scale: float
) -> tuple[Tensor, Tensor]:
    return _outputs(q)


def _grads_into(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding: Tensor | None,
    y: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
) -> None:
    q, k, v, dy = (_last_axis_dense(x) for x in (q, k, v, dy))
    dy, y = dy.view(q.shape), y.view(q.shape)
    delta = torch.empty_like(lse)
    shared = _workspace(q, k, True), causal, scale, product_options(q)[0], stream_of(q)
    _C.attention_backward(q, k, v, key_padding, y, lse, delta, dy, dq, dk, dv, *shared)


def _grad_outputs(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), k.new_empty(k.shape)


def _grad_run(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding: Tensor | None,
    y: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _grad_outputs(q, k)
    _grads_into(*grads, dy, q, k, v, key_padding, y, lse, causal, scale)
    return grads


def _grad_fake(_dy: Tensor, q: Tensor, k: Tensor, *_rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _grad_outputs(q, k)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, key_padding, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, key_padding, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, dy: Tensor, _dlse: Tensor) -> tuple[Tensor | None, ...]:
    return *_grad(dy, *ctx.saved_tensors, ctx.causal, ctx.scale), None, None, None


def _qkv_run(
    qkv: Tensor, num_heads: int, key_padding: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    return _run(*_split(_last_axis_dense(qkv), num_heads), key_padding, causal, scale)


def _qkv_fake(qkv: Tensor, num_heads: int, *_rest: Any) -> tuple[Tensor, Tensor]:
    return _outputs(_split(qkv, num_heads)[0])


def _qkv_grad_run(
    dy: Tensor,
    qkv: Tensor,
    num_heads: int,
    key_padding: Tensor | None,
    y: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
) -> Tensor:
    dqkv = qkv.new_empty(qkv.shape)
    inputs = _split(_last_axis_dense(qkv), num_heads)
    _grads_into(*_split(dqkv, num_heads), dy, *inputs, key_padding, y, lse, causal, scale)
    return dqkv


def _qkv_grad_fake(_dy: Tensor, qkv: Tensor, *_rest: Any) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _qkv_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.num_heads, key_padding, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(qkv, key_padding, *output)
    ctx.mark_non_differentiable(output[1])


def _qkv_backward(ctx: Any, dy: Tensor, _dlse: Tensor) -> tuple[Tensor | None, ...]:
    qkv, key_padding, y, lse = ctx.saved_tensors
    return (
        _qkv_grad(dy, qkv, ctx.num_heads, key_padding, y, lse, ctx.causal, ctx.scale),
        None,
        None,
        None,
        None,
    )


_forward = register(
    "attention",
    "(Tensor q, Tensor k, Tensor v, Tensor? key_padding, bool causal, float scale) -> (Tensor y, Tensor lse)",
    _run,
    _fake,
    _backward,
    _setup_context,
)
_grad = register(
    "attention_backward",
    "(Tensor dy, Tensor q, Tensor k, Tensor v, Tensor? key_padding, Tensor y, Tensor lse, bool causal,"
    " float scale) -> (Tensor dq, Tensor dk, Tensor dv)",
    _grad_run,
    _grad_fake,
)
_qkv_forward = register(
    "attention_qkv",
    "(Tensor qkv, int num_heads, Tensor? key_padding, bool causal, float scale) -> (Tensor y, Tensor lse)",
    _qkv_run,
    _qkv_fake,
    _qkv_backward,
    _qkv_setup_context,
)
_qkv_grad = register(
    "attention_qkv_backward",
    "(Tensor dy, Tensor qkv, int num_heads, Tensor? key_padding, Tensor y, Tensor lse, bool causal,"
    " float scale) -> Tensor dqkv",
    _qkv_grad_run,
    _qkv_grad_fake,
)
