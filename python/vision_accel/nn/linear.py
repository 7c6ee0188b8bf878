# SPDX-License-Identifier: Apache-2.0
"""A linear layer with its epilogue, and when work may be merged into it."""

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


def is_plain(module: torch.nn.Module, kind: type[torch.nn.Module]) -> bool:
    """Whether a module computes what ``kind`` does, and nobody watches it.

    Only then may its work be merged with that of others: a hook expects the module's own result, and what
    was put in its place (LoRA, an adapter) takes no more than its input.
    """
    return (
        type(module).forward is kind.forward
        and "forward" not in module.__dict__
        and not (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        )
    )


def linear(
    layer: torch.nn.Module,
    x: Tensor,
    activation: str = "none",
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    rows: tuple[int, int] | None = None,
) -> Tensor:
    """A :class:`Linear` with its epilogue; one step after the other where the layer is not plain."""
    if is_plain(layer, Linear):
        y: Tensor = layer(x, activation, residual, scale, rows)
        return y
    y = layer(x)
    y = ops.activation(y if rows is None else y[..., rows[0] : rows[1]], activation)
    y = y if scale is None else scale * y
    return y if residual is None else residual + y
