# SPDX-License-Identifier: Apache-2.0
"""Blocks of convolutional autoencoders on channels-last images. Parameters are named as in diffusers.

The stream that residual blocks add to may be float32 beside 16-bit weights: what overflows in 16 bits are its
sums. Norms bring it down to the weights' dtype, which is safe behind a normalisation.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vision_accel import ops
from vision_accel.nn.conv import Conv2d, UpsampleConv2d, convolve
from vision_accel.nn.linear import Linear, linear
from vision_accel.nn.norm import GroupNorm
from vision_accel.ops._layout import autocasts


class ResnetBlock(nn.Module):
    """``shortcut(x) + conv2(act(norm2(conv1(act(norm1(x))))))``.

    Source: He et al. 2016, arXiv:1603.05027, as in Rombach et al. 2021, arXiv:2112.10752.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int, activation: str = "silu") -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels, activation=activation)
        self.conv1 = Conv2d(in_channels, out_channels, 3, pad=1)
        self.norm2 = GroupNorm(groups, out_channels, activation=activation)
        self.conv2 = Conv2d(out_channels, out_channels, 3, pad=1)
        self.conv_shortcut = Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, w, C] -> [B, h, w, N] in the dtype of x."""
        h = convolve(self.conv1, self.norm1(x), out_dtype=x.dtype)
        h = self.norm2(h)
        shortcut = x if self.conv_shortcut is None else of_stream(self.conv_shortcut, x)
        return convolve(self.conv2, h, shortcut)


class SpatialAttention(nn.Module):
    """Self-attention of one head over the pixels, added to its input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = GroupNorm(groups, channels)
        self.to_q, self.to_k, self.to_v = (Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, w, C] -> the same."""
        tokens = self.group_norm(x).flatten(1, 2)  # [B, N, C]
        q, k, v = (part(tokens).unsqueeze(2) for part in (self.to_q, self.to_k, self.to_v))  # [B, N, 1, C]
        y = ops.attention(q, k, v)
        return linear(self.to_out[0], y, residual=x.flatten(1, 2)).view(x.shape)


class MidBlock(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int, groups: int, attention: bool, activation: str = "silu") -> None:
        super().__init__()
        self.attentions = nn.ModuleList([SpatialAttention(channels, groups)] if attention else [])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups, activation) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, w, C] -> the same."""
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Downsample(nn.Module):
    """3 x 3 convolution of stride 2 that sees one row and column more below and on the right."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, 2, (0, 1, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, w, C] -> [B, h / 2, w / 2, C]."""
        return of_stream(self.conv, x)


class Upsample(nn.Module):
    """Twice the size by repeated pixels, and a 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = UpsampleConv2d(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, w, C] -> [B, 2 h, 2 w, C]."""
        return of_stream(self.conv, x)


class _Level(nn.Module):
    """Residual blocks, then another size where the level is not the last."""

    resize: tuple[str, type[nn.Module]]  # name of the list that holds the layer, and its type

    def __init__(
        self, in_channels: int, out_channels: int, layers: int, groups: int, last: bool, activation: str
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(ResnetBlock(a, b, groups, activation) for a, b in pairwise(widths))
        name, kind = self.resize
        self.add_module(name, nn.ModuleList([] if last else [kind(out_channels)]))

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, w, C] -> [B, h / 2, w / 2, N] or [B, 2 h, 2 w, N]; the last level keeps the size."""
        for layer in (*self.resnets, *getattr(self, self.resize[0])):
            x = layer(x)
        return x


class DownBlock(_Level):
    """Residual blocks, then half the size."""

    resize = ("downsamplers", Downsample)


class UpBlock(_Level):
    """Residual blocks, then twice the size."""

    resize = ("upsamplers", Upsample)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the residual stream beside weights of ``dtype``."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def of_stream(conv: Callable[..., Tensor], x: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """A convolution of the stream itself, in its dtype where ``torch.autocast`` would make it float16."""
    if autocasts(x) and torch.get_autocast_dtype(x.device.type) == torch.float16:
        with torch.autocast(x.device.type, enabled=False):
            return conv(x, *arguments, **options)
    return conv(x, *arguments, **options)
