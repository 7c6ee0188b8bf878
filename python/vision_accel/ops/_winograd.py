# SPDX-License-Identifier: Apache-2.0
"""Winograd's algorithm for 3 x 3 convolutions on the CPU: when it is taken, and its weights.

Source: Lavin & Gray 2015, arXiv:1509.09308, F(2 x 2, 3 x 3). Larger tiles take fewer products still, but
err by more than twice what a plain sum does.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vision_accel import _C

_LEAST_CHANNELS = 24  # below this the transforms cost more than the products that they save
_LEAST_TRAINED_PIXELS = 64  # below this it does not pay to transform a weight that is to change


def suits(x: Tensor, weight_shape: Sequence[int], stride: int, pixels: int | None = None) -> bool:
    """Whether a convolution of x, or the gradient by its weight, is done so; the batch has no say.

    Args:
        x: an image, or its gradient.
        weight_shape: [N, C, i, j].
        stride: of the window.
        pixels: of one image of the result, where the weight is transformed for this call alone.
    """
    n, c, i, j = weight_shape
    return (
        (i, j, stride) == (3, 3, 1)
        and min(n, c) >= _LEAST_CHANNELS
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and (pixels is None or pixels >= _LEAST_TRAINED_PIXELS)
    )


def pack(weight: Tensor, *, upsample: bool = False, mirrored: bool = False) -> Tensor:
    """The points of a float32 weight [N, C, 3, 3], packed: [16, numel], or [9, numel] behind an upsampling.

    ``mirrored`` takes the taps from the last to the first.
    """
    packed = weight.new_empty(9 if upsample else 16, _C.linear_packed_numel(weight[:, :, 0, 0]))
    _C.conv2d_winograd_pack(weight, packed, mirrored, upsample)
    return packed


def backward_weight(
    dy: Tensor, x: Tensor, dweight: Tensor, dbias: Tensor | None, corner: tuple[int, int], upsample: bool
) -> None:
    """The gradients by the weight [N, C, 3, 3] and the bias."""
    work = dy.new_empty(_C.conv2d_winograd_workspace(dy, x.shape[3], upsample))
    _C.conv2d_winograd_weight(dy, x, dweight, dbias, work, corner, upsample)
