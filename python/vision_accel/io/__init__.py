# SPDX-License-Identifier: Apache-2.0
"""Reads and writes the checkpoint layouts of other libraries. Knows files, names and configs; no model maths.

A checkpoint is a directory: config.json, the weights (safetensors, or a pickle read with ``weights_only``),
and optionally how images are prepared. Nothing in a checkpoint is ever executed.
"""

from vision_accel.io.checkpoint import TOKENIZER_OPTIONS, Checkpoint, read_checkpoint, write_checkpoint
from vision_accel.io.hub import find_directory
from vision_accel.io.tensors import describe, read_file

__all__ = [
    "TOKENIZER_OPTIONS",
    "Checkpoint",
    "describe",
    "find_directory",
    "read_checkpoint",
    "read_file",
    "write_checkpoint",
]
