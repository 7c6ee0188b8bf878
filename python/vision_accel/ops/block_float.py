# SPDX-License-Identifier: Apache-2.0
"""Rows of float32 activations kept in 20.5 bits a value, for work within little memory."""

from collections.abc import Sequence
from operator import index

import torch
from torch import Tensor

from vision_accel import _C
from vision_accel.ops._layout import stream_of


def block_float_bytes(width: int, channels: int) -> int:
    """Bytes that a packed row takes: 41 for 16 pixels of a channel, rounded up to a multiple of 64.

    Args:
        width: pixels of the row; the last block of 16 is kept whole.
        channels: values of a pixel, at least 1.

    Raises:
        ValueError: an argument is out of range.
    """
    size: int = _C.block_float_bytes(width, channels)
    return size


def pack_block_float(x: Tensor, store: Tensor, offsets: Sequence[int]) -> None:
    """Write every row of ``x`` into ``store``, 20 bits a value and one exponent for 16 pixels of a channel.

    A block of 16 pixels of one channel whose largest magnitude is in [2^e, 2^(e+1)) is rounded to multiples
    of 2^(e-18), ties to even: a value is off by at most 2^(e-19), except that a magnitude that would round
    to 2^(e+1) becomes 2^(e+1) - 2^(e-18). Values with up to 19 significant bits in that scale are exact,
    and so is packing what was unpacked. A block whose largest magnitude is below 2^-107 becomes zeros, as
    does -0.0; one that holds an infinity or a NaN comes back as 16 NaN. The bytes are the same for any
    number of threads and on every device.

    Args:
        x: [R, W, C] float32; the last axis contiguous, any other strides.
        store: [N] uint8, contiguous, on the same device; changed in place.
        offsets: for each row the byte of ``store`` at which its :func:`block_float_bytes` begin; multiples
            of 64, so far apart that rows do not meet.

    Raises:
        ValueError: shapes, strides, devices or offsets do not fit.
        TypeError: a dtype does not fit.
        NotImplementedError: ``x`` or ``store`` requires a gradient.

    Source: block floating point, Wilkinson 1963, "Rounding Errors in Algebraic Processes".
    """
    _check_tensors("pack_block_float", x=x, store=store)
    _C.pack_block_float(x, store, [index(i) for i in offsets], stream_of(x))
    torch.autograd.graph.increment_version(store)


def unpack_block_float(store: Tensor, offsets: Sequence[int], out: Tensor) -> None:
    """Read rows that :func:`pack_block_float` wrote into ``out``, in place.

    Args:
        store: [N] uint8, contiguous.
        offsets: for each row the byte of ``store`` at which it begins.
        out: [R, W, C] float32 of the width and channels that were packed, on the same device; the last axis
            contiguous, any other strides with which pixels do not overlap.

    Raises:
        ValueError: shapes, strides, devices or offsets do not fit.
        TypeError: a dtype does not fit.
        NotImplementedError: ``out`` requires a gradient.
    """
    _check_tensors("unpack_block_float", store=store, out=out)
    _C.unpack_block_float(store, [index(i) for i in offsets], out, stream_of(out))
    torch.autograd.graph.increment_version(out)


def _check_tensors(name: str, **tensors: Tensor) -> None:
    for argument, t in tensors.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{name}: {argument} must be a Tensor, got {type(t).__name__}")
        if t.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError(f"{name}: its gradient is not supported")
