# SPDX-License-Identifier: Apache-2.0
"""Gradients of a loss that needs all samples of a step, with the activations of one micro-batch at a time."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor


def joined_backward(
    count: int,
    outputs: Callable[[int], tuple[Tensor, ...]],
    loss: Callable[[Sequence[Tensor]], Tensor],
    unsynced: Callable[[bool], AbstractContextManager[None]],
    scale: float,
) -> Tensor:
    """Add the gradients of ``loss`` to the weights behind ``outputs``, and return the loss.

    The outputs of all micro-batches are computed without keeping activations, the loss of them together gives
    their gradients, and a second forward pass of each takes these to the weights.

    Args:
        count: number of micro-batches.
        outputs: what a micro-batch gives: tensors with a batch axis, and scalars that are the same in all. It
            must give the same again, random numbers included.
        loss: of the outputs, each joined along the batch axis.
        unsynced: a context in which gradients stay in this process, if its argument is true.
        scale: factor of the gradients.

    Source: Gao et al. 2021 (GradCache), arXiv:2101.06983.
    """
    with torch.no_grad():
        parts = list(zip(*(outputs(m) for m in range(count)), strict=True))
    joined = [torch.cat(p) if p[0].ndim else p[0].detach().clone() for p in parts]
    for tensor in joined:
        tensor.requires_grad_()
    total = loss(joined)
    (total * scale).backward()
    for m in range(count):
        last = m == count - 1
        with unsynced(not last):
            found = outputs(m)
            pairs = []
            for whole, part in zip(joined, found, strict=True):
                assert whole.grad is not None
                if part.ndim:
                    pairs.append((part, whole.grad[m * len(part) : (m + 1) * len(part)]))
                else:  # a scalar of all micro-batches: its gradient is taken once
                    pairs.append((part, whole.grad if last else torch.zeros_like(whole.grad)))
            wanted = [(part, grad) for part, grad in pairs if part.requires_grad]
            torch.autograd.backward([part for part, _ in wanted], [grad for _, grad in wanted])
    return total.detach().float()
