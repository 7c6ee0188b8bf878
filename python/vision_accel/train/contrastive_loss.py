# SPDX-License-Identifier: Apache-2.0
"""The contrastive losses of a batch that is spread over all processes.

Each process computes the rows of its own images against the texts of all. The loss of a process is such that
the mean over processes is the loss of the whole batch, and so are the gradients that DistributedDataParallel
averages.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vision_accel import ops
from vision_accel.ops.contrastive_loss import (
    check_pairs,
    sigmoid_rows,
    sigmoid_rows_backward,
    softmax_parts,
)


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """``ops.contrastive_loss`` of the images and texts of all processes, this process's share of it.

    The softmax loss gathers all texts; the sigmoid loss sends them round, so that a process holds
    those of one other at a time.

    Args:
        image: [B, E], normalised; of this process, B being the same in all.
        text: [B, E], normalised.
        scale: the factor of the logits (not its logarithm), a scalar.
        bias: added to the logits; None for the softmax loss.

    Returns:
        a scalar in float32.
    """
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return ops.contrastive_loss(image, text, scale, bias)
    check_pairs(image, text)
    image, text = image.float(), text.float()  # sums over processes are in float32
    if bias is not None:
        return _ring(image, text, scale, bias).mean()
    rank, count = dist.get_rank(), len(image)
    rows, own, top, columns = softmax_parts(image, _gather(text.contiguous()), scale, rank * count)
    columns = _join(top, columns)
    mine = slice(rank * count, rank * count + count)
    return (rows + (columns[mine] - own)).mean() / 2


class _Gather(torch.autograd.Function):
    """The rows of all processes; backward adds up what all of them say about mine."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)  # autograd may hold it elsewhere
        dist.all_reduce(grad)
        first = dist.get_rank() * ctx.rows
        return grad[first : first + ctx.rows]


class _Join(torch.autograd.Function):
    """log sum exp over all processes of ``top + columns``; top is a constant that columns is taken from."""

    @staticmethod
    def forward(ctx: Any, top: Tensor, columns: Tensor) -> Tensor:
        most = top.clone()
        dist.all_reduce(most, dist.ReduceOp.MAX)
        mine = columns + (top - most)
        total = mine.exp()
        dist.all_reduce(total)
        total = total.log_()
        ctx.save_for_backward(mine - total)
        return most + total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (share,) = ctx.saved_tensors
        grad = grad.clone(memory_format=torch.contiguous_format)  # autograd may hold it elsewhere
        dist.all_reduce(grad)
        return None, grad * share.exp()


class _Ring(torch.autograd.Function):
    """Sigmoid losses of my images; the texts, and in backward their gradients, go round once."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(image, text, scale, bias)
        rows = sigmoid_rows(image, text, scale, bias, 0)
        for _ in range(1, dist.get_world_size()):
            (text,) = _pass_on(text)
            rows = rows + sigmoid_rows(image, text, scale, bias, -1)
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        image, text, scale, bias = ctx.saved_tensors
        totals = [torch.zeros_like(x) for x in (image, text, scale, bias)]
        for step in range(dist.get_world_size()):
            found = sigmoid_rows_backward(grad, image, text, scale, bias, 0 if step == 0 else -1)
            for total, part in zip(totals, found, strict=True):
                total += part
            text, totals[1] = _pass_on(text, totals[1])
        return tuple(totals)


def _pass_on(*tensors: Tensor) -> list[Tensor]:
    """Give tensors to the next process and get those of the one before."""
    rank, size = dist.get_rank(), dist.get_world_size()
    received = [torch.empty_like(x) for x in tensors]
    work = []
    for mine, theirs in zip(tensors, received, strict=True):
        work.append(dist.P2POp(dist.isend, mine.contiguous(), (rank + 1) % size))
        work.append(dist.P2POp(dist.irecv, theirs, (rank - 1) % size))
    for request in dist.batch_isend_irecv(work):
        request.wait()
    return received


# Annotated, because torch's ``apply`` is not.
_gather: Callable[..., Tensor] = _Gather.apply
_join: Callable[..., Tensor] = _Join.apply
_ring: Callable[..., Tensor] = _Ring.apply
