# SPDX-License-Identifier: Apache-2.0
"""A linear layer with its epilogue."""

import torch
from torch import Tensor

from vision_accel import ops


class Linear(torch.nn.Linear):
    """``residual + scale * activation(x @ weight.T + bias)`` in one op; a ``torch.nn.Linear`` in all else."""

    def forward(
        self,
        x: Tensor,
        activation: str = "none",
        residual: Tensor | None = None,
        scale: Tensor | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Tensor:
        """Apply the layer.

        Args:
            x: [..., C].
            activation: ``none``, ``gelu``, ``gelu_tanh``, ``quick_gelu`` or ``silu``.
            residual: [..., K], added last.
            scale: [K], multiplies before the residual is added (layer scale).
            rows: compute the output features from ``rows[0]`` to ``rows[1]`` only.
        """
        return ops.linear(x, self.weight, self.bias, activation, residual, scale, rows=rows)
