# SPDX-License-Identifier: Apache-2.0
"""Layer normalisation."""

import torch
from torch import Tensor

from vision_accel import ops
from vision_accel.nn._activations import UNFUSED


class LayerNorm(torch.nn.LayerNorm):
    """``torch.nn.LayerNorm`` over the last axis, computed by :func:`vision_accel.ops.layer_norm`."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., C]."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class GroupNorm(torch.nn.GroupNorm):
    """``torch.nn.GroupNorm`` of channels-last images, with an activation behind it."""

    def __init__(self, groups: int, channels: int, eps: float = 1e-6, activation: str = "none") -> None:
        super().__init__(groups, channels, eps)
        self.activation = activation

    def forward(
        self, x: Tensor, statistics: tuple[Tensor, Tensor] | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Normalise x [B, ..., C]; ``statistics`` and ``out`` as in :func:`vision_accel.ops.group_norm`."""
        unfused = UNFUSED.get(self.activation)
        fused = self.activation if unfused is None else "none"
        y = ops.group_norm(
            x, self.num_groups, self.weight, self.bias, self.eps, fused, statistics=statistics, out=out
        )
        return y if unfused is None else unfused(y, inplace=True)
