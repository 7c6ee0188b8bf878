# SPDX-License-Identifier: Apache-2.0
"""Losses of paired embeddings, in rows of logits at a time: the matrix of all logits is never stored.

Over several processes each computes the rows of its own images against the texts of all. The loss of a
process is such that the mean over processes is the loss of the whole batch, and so are the gradients that
DistributedDataParallel averages.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

CHUNK = 256  # rows of logits at a time


def contrastive_loss(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None = None, *, chunk: int = CHUNK
) -> Tensor:
    """Loss of images and texts that belong together pairwise.

    Without a bias, the mean of the two cross-entropies of ``scale * image @ text.T`` along rows and columns
    (CLIP); with one, the mean over images of the summed binary cross-entropies of all pairs (SigLIP). In
    float32 whatever the dtype.

    Args:
        image: [B, E], normalised; of this process, where there are several.
        text: [B, E], normalised.
        scale: the factor of the logits (not its logarithm), a scalar.
        bias: added to the logits; None for the softmax loss.
        chunk: rows of logits in memory at a time.

    Returns:
        a scalar in float32.

    Sources: Radford et al. 2021, arXiv:2103.00020, figure 3; Zhai et al. 2023, arXiv:2303.15343, algorithm 1.
    """
    if image.ndim != 2 or image.shape != text.shape or not len(image):
        raise ValueError(
            f"contrastive_loss: images and texts must be [B, E] of one shape, got {list(image.shape)}"
            f" and {list(text.shape)}"
        )
    everyone, first = text, 0
    if dist.is_initialized() and dist.get_world_size() > 1:
        everyone, first = _gather(text.contiguous()), dist.get_rank() * len(text)
    wide = image.float(), everyone.float(), scale.float()
    with torch.autocast(image.device.type, enabled=False):
        if bias is None:
            loss: Tensor = _softmax(*wide, first, chunk)
        else:
            loss = _sigmoid(*wide, bias.float(), first, chunk)
    return loss


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
        grad = grad.contiguous()
        dist.all_reduce(grad)
        first = dist.get_rank() * ctx.rows
        return grad[first : first + ctx.rows]


class _Softmax(torch.autograd.Function):
    """Rows of mine against all columns. The columns' sums need the rows of the other processes too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, first: int, chunk: int) -> Tensor:
        rows = x.new_empty(len(x))
        top = x.new_full((len(y),), -torch.inf)
        total = x.new_zeros(len(y))
        for i in range(0, len(x), chunk):
            logits = x[i : i + chunk] @ y.T * scale
            rows[i : i + chunk] = logits.logsumexp(1)
            new = torch.maximum(top, logits.amax(0))
            total = total * (top - new).exp() + logits.sub_(new).exp_().sum(0)
            top = new
        if len(y) > len(x):
            most = top.clone()
            dist.all_reduce(most, dist.ReduceOp.MAX)
            total *= (top - most).exp()
            dist.all_reduce(total)
            top = most
        columns = top + total.log()
        own = slice(first, first + len(x))
        right = (x * y[own]).sum(1) * scale
        ctx.save_for_backward(x, y, scale, rows, columns)
        ctx.first, ctx.chunk = first, chunk
        return (rows + columns[own] - 2 * right).sum() / (2 * len(x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, rows, columns = ctx.saved_tensors
        dx, dy, dscale = torch.empty_like(x), torch.zeros_like(y), x.new_zeros(())
        for i in range(0, len(x), ctx.chunk):
            cosine = x[i : i + ctx.chunk] @ y.T
            logits = cosine * scale
            share = (logits - rows[i : i + ctx.chunk, None]).exp_()
            share += logits.sub_(columns).exp_()
            place = torch.arange(len(share))
            share[place, place + (ctx.first + i)] -= 2
            dscale += (share * cosine).sum()
            dx[i : i + ctx.chunk] = share @ y
            dy.addmm_(share.T, x[i : i + ctx.chunk])
        factor = grad / (2 * len(x))
        return dx * (factor * scale), dy * (factor * scale), dscale * factor, None, None


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, first: int, chunk: int
    ) -> Tensor:
        loss = x.new_zeros(())
        for i in range(0, len(x), chunk):
            logits = x[i : i + chunk] @ y.T * scale + bias
            place = torch.arange(len(logits))
            right = logits[place, place + (first + i)]
            # -log sigmoid(-z) for pairs that do not belong together, -log sigmoid(z) for those that do.
            loss += F.softplus(logits).sum() - right.sum()
        ctx.save_for_backward(x, y, scale, bias)
        ctx.first, ctx.chunk = first, chunk
        return loss / len(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias = ctx.saved_tensors
        dx, dy = torch.empty_like(x), torch.zeros_like(y)
        dscale, dbias = x.new_zeros(()), x.new_zeros(())
        for i in range(0, len(x), ctx.chunk):
            cosine = x[i : i + ctx.chunk] @ y.T
            d = (cosine * scale + bias).sigmoid_()
            place = torch.arange(len(d))
            d[place, place + (ctx.first + i)] -= 1
            dscale += (d * cosine).sum()
            dbias += d.sum()
            dx[i : i + ctx.chunk] = d @ y
            dy.addmm_(d.T, x[i : i + ctx.chunk])
        factor = grad / len(x)
        return (
            dx * (factor * scale),
            dy * (factor * scale),
            dscale * factor,
            (dbias * factor).reshape(bias.shape),
            None,
            None,
        )


# Annotated, because torch's ``apply`` is not.
_gather: Callable[..., Tensor] = _Gather.apply
_softmax: Callable[..., Tensor] = _Softmax.apply
_sigmoid: Callable[..., Tensor] = _Sigmoid.apply
