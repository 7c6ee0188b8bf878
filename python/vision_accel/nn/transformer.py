# SPDX-License-Identifier: Apache-2.0
"""The transformer block."""

from typing import Any

import torch
from torch import Tensor, nn

from vision_accel.nn.attention import Attention, only
from vision_accel.nn.drop import DropPath
from vision_accel.nn.linear import is_plain
from vision_accel.nn.mlp import Mlp, SwiGLU
from vision_accel.nn.norm import LayerNorm

MLPS: dict[str, type[Mlp]] = {"mlp": Mlp, "swiglu": SwiGLU}


class LayerScale(nn.Module):
    """One learned factor per channel at the end of a branch.

    Source: Touvron et al. 2021, arXiv:2103.17239.
    """

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        """Scale x [..., C]."""
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block: ``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        *,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        qk_norm: bool = False,
        scale_attn_norm: bool = False,
        scale_mlp_norm: bool = False,
        init_values: float | None = None,
        activation: str = "gelu",
        mlp: str = "mlp",
        norm_eps: float = 1e-6,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, norm_eps)
        self.attn = Attention(
            dim,
            num_heads,
            qkv_bias,
            proj_bias,
            qk_norm,
            scale_attn_norm,
            norm_eps,
            attn_drop,
            proj_drop,
            causal,
        )
        self.ls1 = LayerScale(dim, init_values) if init_values is not None else nn.Identity()
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = LayerNorm(dim, norm_eps)
        self.mlp = MLPS[mlp](
            dim, hidden_dim, activation, proj_bias, proj_drop, norm_eps if scale_mlp_norm else None
        )
        self.ls2 = LayerScale(dim, init_values) if init_values is not None else nn.Identity()
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor, first: int | None = None, at: Tensor | None = None) -> Tensor:
        """Map x [B, N, C] -> [B, N, C].

        With ``first``, only the output of the first so many tokens is computed, [B, first, C]; with ``at``
        [B], only that of the token at this place in each row, [B, 1, C]. Exact: the other tokens enter
        through attention alone.
        """
        y = self.norm1(x)
        if (first is None and at is None) or not is_plain(self.attn, Attention):
            x = only(self._add(x, self.attn, y, self.ls1, self.drop_path1), first, at)
        else:
            kept = only(x, first, at)
            x = self._add(kept, self.attn, y, self.ls1, self.drop_path1, first=first, at=at)
        return self._add(x, self.mlp, self.norm2(x), self.ls2, self.drop_path2)

    def _add(
        self,
        x: Tensor,
        branch: Attention | Mlp,
        y: Tensor,
        scale: nn.Module,
        drop_path: DropPath,
        **options: Any,
    ) -> Tensor:
        """``x + drop_path(scale(branch(y)))``, inside the branch's last linear where that is the same."""
        merged = (
            is_plain(branch, Attention if branch is self.attn else Mlp)
            and branch.ends_in_linear()
            and (is_plain(scale, LayerScale) or is_plain(scale, nn.Identity))
            and is_plain(drop_path, DropPath)
            and not drop_path.active()
        )
        if not merged:
            return x + drop_path(scale(branch(y, **options)))
        gamma = scale.gamma if isinstance(scale, LayerScale) else None
        return branch(y, residual=x, scale=gamma, **options)
