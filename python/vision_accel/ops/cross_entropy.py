# SPDX-License-Identifier: Apache-2.0
"""Softmax cross-entropy, forward and backward each in one pass over the logits."""

from typing import Any

import torch
from torch import Tensor

from vision_accel import _C
from vision_accel.ops._layout import dense_rows, statistics_dtype, stream_of
from vision_accel.ops._register import register


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    *,
    ignore_index: int = -100,
) -> Tensor:
    """Cross-entropy between the softmax of the last axis and a target.

    As ``torch.nn.functional.cross_entropy``, except that classes are always the last axis (torch wants them
    in axis 1, which is the same for [B, K]). Statistics are in float32 (float64 for float64 logits); the
    result is the same, bit for bit, for any number of threads.

    Args:
        logits: [..., K], float32, float64, float16 or bfloat16.
        target: class indices [...], int64; or class probabilities [..., K], any floating dtype.
        label_smoothing: the share of the target that is spread evenly over all classes, in [0, 1].
        reduction: ``"mean"`` over the rows that are not ignored (NaN if there are none), ``"sum"`` or
            ``"none"``.
        ignore_index: rows with this class index do not count.

    Returns:
        a scalar, or [...] without reduction; in the dtype of the logits (promoted with probabilities').

    Raises:
        ValueError: a shape does not match, a class index is out of range, an option is unknown. On a GPU a
            class index out of range gives NaN instead: an error would have to wait for the indices.
        TypeError: a dtype is not supported.

    Source: Szegedy et al. 2015, arXiv:1512.00567 (label smoothing); ``torch.nn.functional.cross_entropy``.
    """
    if logits.ndim == 0:
        raise ValueError("cross_entropy: logits must be [..., K], got a scalar")
    dtype = logits.dtype
    if target.is_floating_point():
        dtype = torch.promote_types(dtype, target.dtype)
        target = target.to(statistics_dtype(logits))
        if target.shape != logits.shape:
            raise ValueError(
                f"cross_entropy: probabilities must be {list(logits.shape)}, got {list(target.shape)}"
            )
    elif target.shape != logits.shape[:-1]:
        raise ValueError(
            f"cross_entropy: class indices must be {list(logits.shape[:-1])}, got {list(target.shape)}"
        )
    loss, _ = _forward(logits, target, label_smoothing, reduction, ignore_index)
    result: Tensor = loss.to(dtype)
    return result


def _outputs(logits: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """The loss and the saved log-sum-exp."""
    lse = torch.empty(logits.shape[:-1], dtype=statistics_dtype(logits), device=logits.device)
    return (torch.empty_like(lse) if reduction == "none" else lse.new_empty(())), lse


def _run(
    logits: Tensor, target: Tensor, label_smoothing: float, reduction: str, ignore_index: int
) -> tuple[Tensor, Tensor]:
    loss, lse = _outputs(logits, reduction)
    losses = None if reduction == "none" else torch.empty_like(lse)
    _C.cross_entropy_forward(
        dense_rows(logits),
        target.contiguous(),
        loss,
        losses,
        lse,
        label_smoothing,
        reduction,
        ignore_index,
        stream_of(logits),
    )
    return loss, lse


def _fake(
    logits: Tensor, _target: Tensor, _label_smoothing: float, reduction: str, _ignore_index: int
) -> tuple[Tensor, Tensor]:
    return _outputs(logits, reduction)


def _grad_run(
    dloss: Tensor,
    logits: Tensor,
    target: Tensor,
    lse: Tensor,
    label_smoothing: float,
    reduction: str,
    ignore_index: int,
    needs_target: bool,
) -> tuple[Tensor, Tensor]:
    dlogits, dtarget = outputs = _grad_outputs(logits, target, needs_target)
    _C.cross_entropy_backward(
        dloss.contiguous(),
        dense_rows(logits),
        target.contiguous(),
        lse,
        dlogits,
        dtarget if needs_target else None,
        lse.new_empty(1),
        label_smoothing,
        reduction,
        ignore_index,
        stream_of(logits),
    )
    return outputs


def _grad_outputs(logits: Tensor, target: Tensor, needs_target: bool) -> tuple[Tensor, Tensor]:
    dlogits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if not needs_target:
        return dlogits, target.new_empty(0)
    return dlogits, torch.empty_like(target, memory_format=torch.contiguous_format)


def _grad_fake(
    _dloss: Tensor,
    logits: Tensor,
    target: Tensor,
    _lse: Tensor,
    _label_smoothing: float,
    _reduction: str,
    _ignore_index: int,
    needs_target: bool,
) -> tuple[Tensor, Tensor]:
    return _grad_outputs(logits, target, needs_target)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, target, *ctx.options = inputs
    ctx.save_for_backward(logits, target, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, dloss: Tensor, _lse: Tensor) -> tuple[Tensor | None, ...]:
    logits, target, lse = ctx.saved_tensors
    needs_target = ctx.needs_input_grad[1]
    dlogits, dtarget = _grad(dloss, logits, target, lse, *ctx.options, needs_target)
    return dlogits, dtarget if needs_target else None, None, None, None


_forward = register(
    "cross_entropy",
    "(Tensor logits, Tensor target, float label_smoothing, str reduction, int ignore_index)"
    " -> (Tensor loss, Tensor lse)",
    _run,
    _fake,
    _backward,
    _setup_context,
)
_grad = register(
    "cross_entropy_backward",
    "(Tensor dloss, Tensor logits, Tensor target, Tensor lse, float label_smoothing, str reduction,"
    " int ignore_index, bool needs_target) -> (Tensor dlogits, Tensor dtarget)",
    _grad_run,
    _grad_fake,
)
