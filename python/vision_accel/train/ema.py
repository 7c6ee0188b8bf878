# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of the weights."""

import copy

import torch
from torch import nn

from vision_accel.train.sharding import local


class Ema:
    """A second model whose weights follow those of the first: ``ema += (1 - decay) * (weights - ema)``.

    Args:
        model: the model to follow; it is copied.
        decay: how much of the average each step keeps.
        warmup: limit the decay of update t to ``(1 + t) / (10 + t)``, so that a short run is not dominated
            by its first weights.

    Source: Polyak & Juditsky 1992; the warm-up is that of ``tf.train.ExponentialMovingAverage``.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = True) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.warmup, self.updates = decay, warmup, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights of the model; other buffers are copied."""
        t = self.updates
        decay = min(self.decay, (1 + t) / (10 + t)) if self.warmup else self.decay
        ours, theirs = self.model.state_dict(), model.state_dict()
        followed = [name for name, value in ours.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [local(ours[n]) for n in followed], [local(theirs[n]) for n in followed], 1 - decay
        )
        for name in ours.keys() - set(followed):
            ours[name].copy_(theirs[name])
        self.updates += 1
