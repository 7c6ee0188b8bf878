# SPDX-License-Identifier: Apache-2.0
"""The feed-forward half of a transformer block."""

from torch import Tensor, nn

from vision_accel import ops
from vision_accel.nn._activations import UNFUSED
from vision_accel.nn.linear import Linear, is_plain, linear
from vision_accel.nn.norm import LayerNorm


class Mlp(nn.Module):
    """fc1, activation, fc2; with dropout after both, and optionally a norm before fc2 (BEiT-3)."""

    gated = False

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        activation: str = "gelu",
        bias: bool = True,
        drop: float = 0.0,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        inner = hidden_dim // 2 if self.gated else hidden_dim
        self.activation = activation
        self.fc1 = Linear(dim, hidden_dim, bias=bias)
        self.drop = nn.Dropout(drop)
        self.norm = nn.Identity() if norm_eps is None else LayerNorm(inner, norm_eps)
        self.fc2 = Linear(inner, dim, bias=bias)

    def hidden(self, x: Tensor) -> Tensor:
        """What fc2 is applied to, [..., hidden]."""
        unfused = UNFUSED.get(self.activation)
        return linear(self.fc1, x, self.activation) if unfused is None else unfused(self.fc1(x))

    def _is_plain(self) -> bool:
        """Whether nothing stands between the layers, and nobody has replaced or hooked them."""
        return (
            not self.gated
            and self.activation not in UNFUSED
            and type(self.norm) is nn.Identity
            and self.ends_in_linear()
            and is_plain(self.fc1, Linear)
            and is_plain(self.fc2, Linear)
        )

    def ends_in_linear(self) -> bool:
        """Whether fc2 is the last thing that happens."""
        return is_plain(self.drop, nn.Dropout) and not (self.training and self.drop.p > 0)

    def forward(self, x: Tensor, residual: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """Map x [..., C] -> [..., C], scaled and added to ``residual`` by fc2."""
        if self._is_plain():
            fc1, fc2 = self.fc1, self.fc2
            return ops.mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, self.activation, residual, scale)
        x = self.norm(self.drop(self.hidden(x)))
        return self.drop(linear(self.fc2, x, residual=residual, scale=scale))


class SwiGLU(Mlp):
    """fc1 gives gate and value side by side: ``fc2(activation(gate) * value)`` (DINOv2 giant).

    Source: Shazeer 2020, arXiv:2002.05202.
    """

    gated = True

    def hidden(self, x: Tensor) -> Tensor:
        """What fc2 is applied to, [..., hidden / 2]."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        unfused = UNFUSED.get(self.activation)
        return (ops.activation(gate, self.activation) if unfused is None else unfused(gate)) * value

    def init_weights(self) -> None:
        """Start with the value half of fc1 near one, as timm does."""
        half = self.fc1.out_features // 2
        if self.fc1.bias is not None:
            nn.init.ones_(self.fc1.bias[half:])
        nn.init.normal_(self.fc1.weight[half:], std=1e-6)
