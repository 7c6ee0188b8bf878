# SPDX-License-Identifier: Apache-2.0
"""Stateless functions on tensors; the only package that calls the C++ core."""

from vision_accel.ops.layer_norm import layer_norm

__all__ = [
    "layer_norm",
]
