# SPDX-License-Identifier: Apache-2.0
"""Modules that own parameters. They are torch's modules, named as timm names them, computed by our ops."""

from vision_accel.nn.attention import Attention, AttentionPool
from vision_accel.nn.conv import Conv2d, UpsampleConv2d
from vision_accel.nn.drop import DropPath, PatchDropout
from vision_accel.nn.linear import Linear, is_plain
from vision_accel.nn.mlp import Mlp, SwiGLU
from vision_accel.nn.norm import GroupNorm, LayerNorm
from vision_accel.nn.patch_embed import PatchEmbed, resample_patch_embed, resample_pos_embed
from vision_accel.nn.resnet import DownBlock, MidBlock, ResnetBlock, SpatialAttention, UpBlock
from vision_accel.nn.transformer import Block, LayerScale

__all__ = [
    "Attention",
    "AttentionPool",
    "Block",
    "Conv2d",
    "DownBlock",
    "DropPath",
    "GroupNorm",
    "LayerNorm",
    "LayerScale",
    "Linear",
    "MidBlock",
    "Mlp",
    "PatchDropout",
    "PatchEmbed",
    "ResnetBlock",
    "SpatialAttention",
    "SwiGLU",
    "UpBlock",
    "UpsampleConv2d",
    "is_plain",
    "resample_patch_embed",
    "resample_pos_embed",
]
