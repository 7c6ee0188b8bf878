# SPDX-License-Identifier: Apache-2.0
"""Stateless functions on tensors; the only package that calls the C++ core."""

from vision_accel.ops._pending import (
    activation,
    adamw,
    cross_entropy,
    linear,
    patchify,
)
from vision_accel.ops.attention import attention, attention_qkv
from vision_accel.ops.layer_norm import layer_norm

__all__ = [
    "activation",
    "adamw",
    "attention",
    "attention_qkv",
    "cross_entropy",
    "layer_norm",
    "linear",
    "patchify",
]
