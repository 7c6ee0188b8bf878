# SPDX-License-Identifier: Apache-2.0
"""Self-attention, and attention pooling."""

import torch
from torch import Tensor, nn

from vision_accel import ops
from vision_accel.nn.linear import Linear, is_plain, linear
from vision_accel.nn.mlp import Mlp
from vision_accel.nn.norm import LayerNorm


class Attention(nn.Module):
    """Multi-head self-attention with one packed qkv projection, as timm stores it."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        qk_norm: bool = False,
        out_norm: bool = False,
        norm_eps: float = 1e-6,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        head_dim = dim // num_heads
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = LayerNorm(head_dim, norm_eps) if qk_norm else nn.Identity()
        self.k_norm = LayerNorm(head_dim, norm_eps) if qk_norm else nn.Identity()
        self.qk_norm = qk_norm
        self.attn_drop = attn_drop
        self.norm = LayerNorm(dim, norm_eps) if out_norm else nn.Identity()
        self.proj = Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        scale: Tensor | None = None,
        first: int | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: [B, N, C].
            residual: [B, N, C], added by the output projection.
            scale: [C], multiplies before the residual is added.
            first: give the output of the first so many tokens only (not with ``causal``); N is then
                ``first`` in the residual and in the result. Every token is still attended to.
            at: [B] int64, give the output of the token at this place only; N is then 1.
        """
        dropping = self.training and self.attn_drop > 0
        if first is None and at is None and not self.qk_norm and not dropping:
            y = ops.attention_qkv(self.qkv(x), self.num_heads, causal=self.causal)  # [B, N, C]
        else:
            q, k, v = self._heads(x, first, at)
            hidden = None  # [B, N], keys that the one query may not see
            if self.causal and at is not None:
                hidden = torch.arange(x.shape[1], device=x.device) > at[:, None]
            causal = self.causal and at is None
            if dropping:
                q, k, v = (t.transpose(1, 2) for t in (q, k, v))
                mask = None if hidden is None else ~hidden[:, None, None]
                y = nn.functional.scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, dropout_p=self.attn_drop, is_causal=causal
                )
                y = y.transpose(1, 2).flatten(2).to(x.dtype)  # autocast may have made it narrower
            else:
                y = ops.attention(q, k, v, causal=causal, key_padding=hidden)
        return self.proj_drop(linear(self.proj, self.norm(y), residual=residual, scale=scale))

    def ends_in_linear(self) -> bool:
        """Whether the output projection is the last thing that happens."""
        return is_plain(self.proj_drop, nn.Dropout) and not (self.training and self.proj_drop.p > 0)

    def _heads(self, x: Tensor, first: int | None, at: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the tokens that are asked for [B, n, H, D], keys and values of all [B, N, H, D]."""
        dim = x.shape[-1]
        split = (self.num_heads, dim // self.num_heads)
        if first is None and at is None:
            q, k, v = self.qkv(x).unflatten(-1, (3, *split)).unbind(2)
        else:
            q = linear(self.qkv, only(x, first, at), rows=(0, dim)).unflatten(-1, split)
            k, v = linear(self.qkv, x, rows=(dim, 3 * dim)).unflatten(-1, (2, *split)).unbind(2)
        return self.q_norm(q), self.k_norm(k), v


def only(x: Tensor, first: int | None, at: Tensor | None) -> Tensor:
    """The first so many tokens of x [B, N, C], or the one at a place [B] in each row, or all: [B, n, C]."""
    if at is None:
        return x if first is None else x[:, :first]
    return x[torch.arange(x.shape[0], device=x.device), at][:, None]


class AttentionPool(nn.Module):
    """Pools tokens by attention from one learned query, then an MLP (the head of SigLIP).

    Source: Zhai et al. 2022, arXiv:2106.04560, section 3.2.
    """

    def __init__(
        self, dim: int, num_heads: int, hidden_dim: int, activation: str = "gelu", norm_eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.latent = nn.Parameter(torch.empty(1, 1, dim))
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.proj = Linear(dim, dim)
        self.norm = LayerNorm(dim, norm_eps)
        self.mlp = Mlp(dim, hidden_dim, activation)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the query."""
        dim = self.latent.shape[-1]
        nn.init.trunc_normal_(self.latent)
        with torch.no_grad():
            self.latent.mul_(dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Pool x [B, N, C] to [B, C]."""
        split = (self.num_heads, x.shape[-1] // self.num_heads)
        q = self.q(self.latent).unflatten(-1, split).expand(x.shape[0], -1, -1, -1)  # [B, 1, H, D]
        k, v = self.kv(x).unflatten(-1, (2, *split)).unbind(2)  # [B, N, H, D]
        y = self.proj(ops.attention(q, k, v))  # [B, 1, C]
        return self.mlp(self.norm(y), residual=y)[:, 0]
