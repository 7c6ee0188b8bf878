# SPDX-License-Identifier: Apache-2.0
"""Activations too rare for a kernel: they run on their own, behind the op that fuses the others."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

UNFUSED: dict[str, Callable[..., Tensor]] = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "leaky_relu": functional.leaky_relu,
    "hard_swish": functional.hardswish,
    "mish": functional.mish,
    "sigmoid": functional.sigmoid,
    "tanh": functional.tanh,
}
