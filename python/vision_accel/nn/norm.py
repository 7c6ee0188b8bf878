# SPDX-License-Identifier: Apache-2.0
"""Layer normalisation."""

import torch
from torch import Tensor

from vision_accel import ops


class LayerNorm(torch.nn.LayerNorm):
    """``torch.nn.LayerNorm`` over the last axis, computed by :func:`vision_accel.ops.layer_norm`."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., C]."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)
