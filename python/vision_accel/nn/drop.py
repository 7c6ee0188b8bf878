# SPDX-License-Identifier: Apache-2.0
"""Regularisers that drop whole branches or whole patches while training."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth: drops the branch of whole samples and rescales the others.

    Source: Huang et al. 2016, arXiv:1603.09382.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.p = p

    def active(self) -> bool:
        """Whether the branch is changed at all."""
        return self.training and self.p > 0

    def forward(self, x: Tensor) -> Tensor:
        """Drop samples of x [B, ...]."""
        if not self.active():
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * keep.div_(1 - self.p) if self.p < 1 else x * keep

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"p={self.p}"


class PatchDropout(nn.Module):
    """Keeps a random subset of the patch tokens of each sample, and every prefix token.

    Source: Liu et al. 2022, arXiv:2208.07220; FLIP, arXiv:2212.00794.
    """

    def __init__(self, p: float, num_prefix_tokens: int) -> None:
        super().__init__()
        self.p = p
        self.num_prefix_tokens = num_prefix_tokens

    def forward(self, x: Tensor) -> Tensor:
        """Thin x [B, P + N, C] out to [B, P + kept, C]."""
        if not self.training or self.p == 0:
            return x
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        batch, count = patches.shape[:2]
        kept = max(1, int(count * (1 - self.p)))
        index = torch.randn(batch, count, device=x.device).argsort(dim=-1)[:, :kept]
        patches = patches.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        return torch.cat([prefix, patches], dim=1)

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"p={self.p}"
