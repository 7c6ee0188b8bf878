# SPDX-License-Identifier: Apache-2.0
"""Ops whose kernels are not written yet, in plain torch. Empty this file, then delete it."""

from vision_accel.testing.reference import attention, attention_qkv

__all__ = ["attention", "attention_qkv"]
