# SPDX-License-Identifier: Apache-2.0
"""The text tower of CLIP and SigLIP."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vision_accel.models.clip_config import TextConfig
from vision_accel.nn import Block, LayerNorm


class TextTransformer(nn.Module):
    """Text tower: token ids [B, N] -> pooled features [B, C]."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        c = self.config = config
        self.grad_checkpointing = False
        self.token_embedding = nn.Embedding(c.vocab_size, c.embed_dim)
        self.pos_embed = nn.Parameter(torch.empty(1, c.context_length, c.embed_dim))
        self.blocks = nn.ModuleList(
            Block(
                c.embed_dim,
                c.num_heads,
                c.hidden_dim,
                init_values=c.init_values,
                activation=c.act_layer,
                norm_eps=c.norm_eps,
                attn_drop=c.attn_drop_rate,
                causal=c.causal,
            )
            for _ in range(c.depth)
        )
        self.norm = LayerNorm(c.embed_dim, c.norm_eps)

    def pool_index(self, tokens: Tensor) -> Tensor:
        """The place [B] of the token whose features stand for the text."""
        kind = self.config.pool
        if kind == "argmax":
            return tokens.argmax(dim=-1)
        if kind == "eos":
            return (tokens == self.config.eos_id).int().argmax(dim=-1)
        place = 0 if kind == "first" else tokens.shape[1] - 1
        return torch.full((tokens.shape[0],), place, device=tokens.device)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [B, N] -> [B, N, C] as the first block takes them."""
        return self.token_embedding(tokens) + self.pos_embed[:, : tokens.shape[1]]

    def forward_features(self, tokens: Tensor) -> Tensor:
        """Token ids [B, N] -> the features of every token after the final norm [B, N, C]."""
        x = self.embed(self._checked(tokens))
        for block in self.blocks:
            x = self._run(block, x)
        return self.norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pooled features of texts.

        The last block computes only the pooled token, and a causal tower only the tokens up to the last
        pooled one: what comes after it cannot change it. Both are exact.

        Args:
            tokens: [B, N] int32 or int64, N at most ``context_length``.

        Returns:
            [B, C].
        """
        at = self.pool_index(self._checked(tokens))
        if self.config.causal and tokens.is_cpu and tokens.numel() and not torch.compiler.is_compiling():
            # A multiple of 8: attention treats one or two queries differently, and so rounds differently.
            tokens = tokens[:, : int(at.max()) // 8 * 8 + 8]
        x = self.embed(tokens)
        for block in self.blocks[:-1]:
            x = self._run(block, x)
        if not self.blocks:
            return self.norm(x[torch.arange(len(x), device=x.device), at])
        return self.norm(self._run(self.blocks[-1], x, at)[:, 0])

    def _run(self, block: nn.Module, x: Tensor, at: Tensor | None = None) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, None, at, use_reentrant=False)
        return block(x, None, at)

    def _checked(self, tokens: Tensor) -> Tensor:
        c = self.config
        if tokens.ndim != 2 or not 0 < tokens.shape[1] <= c.context_length:
            raise ValueError(
                f"CLIP: tokens must be [B, N] with N from 1 to {c.context_length}, got {list(tokens.shape)}"
            )
        if tokens.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"CLIP: tokens must be int32 or int64, got {tokens.dtype}")
        return tokens
