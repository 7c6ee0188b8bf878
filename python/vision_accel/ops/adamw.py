# SPDX-License-Identifier: Apache-2.0
"""AdamW over a list of tensors in one call, and the gradient norm for clipping."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vision_accel import _C
from vision_accel.ops._layout import stream_of


@torch.no_grad()
def adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    *,
    step: int | Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    grad_scale: float = 1.0,
) -> None:
    """Update parameters and their two moments in place by one step of AdamW, with decoupled weight decay.

    The arithmetic is ``torch.optim.AdamW``'s, in float32 (float64 for float64). The result is the same, bit
    for bit, for any number of threads. The autograd version of every changed tensor is raised.

    Args:
        params: float32, float64, float16 or bfloat16 tensors whose memory has no holes; all on one device.
        grads: like the parameters, one for each.
        exp_avgs: first moments; shaped and laid out as the parameters, float32 (float64 for float64).
        exp_avg_sqs: second moments, likewise.
        step: number of this update, from 1. A CUDA graph bakes in an int; captured with an int64 tensor of
            no dimensions, on the parameters' device, each replay reads what the tensor then holds.
        lr: learning rate.
        betas: decay rates of the moments.
        eps: added to the root of the second moment.
        weight_decay: every parameter is first multiplied by ``1 - lr * weight_decay``.
        grad_scale: the gradients are multiplied by it first; clipping and loss scaling cost no extra pass.

    Raises:
        ValueError: lists, shapes, strides or devices do not match, or an option is out of range.
        TypeError: a dtype does not match.

    Source: Loshchilov & Hutter 2017, arXiv:1711.05101; ``torch.optim.AdamW``.
    """
    if not params:
        return
    aligned = [
        g if g is None or g.stride() == p.stride() or g.shape != p.shape else torch.empty_like(p).copy_(g)
        for p, g in zip(params, grads, strict=False)
    ]
    aligned += grads[len(aligned) :]
    _C.adamw(
        params,
        aligned,
        exp_avgs,
        exp_avg_sqs,
        0 if isinstance(step, Tensor) else step,
        step if isinstance(step, Tensor) else None,
        lr,
        *betas,
        eps,
        weight_decay,
        grad_scale,
        stream_of(params[0]),
    )
    torch.autograd.graph.increment_version((*params, *exp_avgs, *exp_avg_sqs))


@torch.no_grad()
def grad_norm(grads: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together, as ``torch.nn.utils.clip_grad_norm_`` takes it.

    Squares are summed in float64, in an order that does not depend on threads. To clip, pass
    ``grad_scale=min(1, max_norm / (norm + 1e-6))`` to :func:`adamw`.

    Args:
        grads: float32, float64, float16 or bfloat16 tensors of any shape, on one device.

    Returns:
        a scalar, float64 if any gradient is, else float32; 0 for an empty list.

    Raises:
        ValueError: the tensors are not on one device.
        TypeError: a dtype is not supported.
    """
    device = grads[0].device if grads else torch.device("cpu")
    norm = torch.empty((), dtype=torch.float64, device=device)
    dense = [g if g.is_contiguous() else g.contiguous() for g in grads]
    _C.grad_norm(dense, norm, norm.new_empty(_C.GRAD_NORM_BLOCKS), stream_of(norm))
    return norm if any(g.dtype == torch.float64 for g in grads) else norm.float()
