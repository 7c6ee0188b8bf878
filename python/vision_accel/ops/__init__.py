# SPDX-License-Identifier: Apache-2.0
"""Stateless functions on tensors; the only package that calls the C++ core.

Without torch there are only the functions that also take numpy arrays: those that prepare images.
"""

from importlib.util import find_spec

from vision_accel.ops.resample import normalization_table, pillow_pixels, resample

if find_spec("torch") is not None:
    from vision_accel.ops._mlp import mlp
    from vision_accel.ops._upsample_conv2d import upsample_conv2d
    from vision_accel.ops.activation import activation
    from vision_accel.ops.adamw import adamw, grad_norm
    from vision_accel.ops.attention import attention, attention_qkv
    from vision_accel.ops.block_float import block_float_bytes, pack_block_float, unpack_block_float
    from vision_accel.ops.contrastive_loss import contrastive_loss
    from vision_accel.ops.conv2d import conv2d
    from vision_accel.ops.cross_entropy import cross_entropy
    from vision_accel.ops.group_norm import group_norm, group_norm_statistics
    from vision_accel.ops.layer_norm import layer_norm
    from vision_accel.ops.linear import linear
    from vision_accel.ops.patchify import patchify

__all__ = [
    "activation",
    "adamw",
    "attention",
    "attention_qkv",
    "block_float_bytes",
    "contrastive_loss",
    "conv2d",
    "cross_entropy",
    "grad_norm",
    "group_norm",
    "group_norm_statistics",
    "layer_norm",
    "linear",
    "mlp",
    "normalization_table",
    "pack_block_float",
    "patchify",
    "pillow_pixels",
    "resample",
    "unpack_block_float",
    "upsample_conv2d",
]
