# SPDX-License-Identifier: Apache-2.0
"""Stateless functions on tensors; the only package that calls the C++ core."""

from vision_accel.ops.activation import activation
from vision_accel.ops.adamw import adamw, grad_norm
from vision_accel.ops.attention import attention, attention_qkv
from vision_accel.ops.cross_entropy import cross_entropy
from vision_accel.ops.layer_norm import layer_norm
from vision_accel.ops.linear import linear
from vision_accel.ops.patchify import patchify
from vision_accel.ops.resample import normalization_table, pillow_pixels, resample

__all__ = [
    "activation",
    "adamw",
    "attention",
    "attention_qkv",
    "cross_entropy",
    "grad_norm",
    "layer_norm",
    "linear",
    "normalization_table",
    "patchify",
    "pillow_pixels",
    "resample",
]
