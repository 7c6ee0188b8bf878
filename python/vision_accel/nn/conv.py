# SPDX-License-Identifier: Apache-2.0
"""Convolutions of channels-last images [B, h, w, C]."""

import torch
from torch import Tensor

from vision_accel import ops
from vision_accel.nn.linear import is_plain

Padding = tuple[int, int, int, int]


class Conv2d(torch.nn.Conv2d):
    """A convolution with its epilogue; parameters are those of ``torch.nn.Conv2d``, images channels-last.

    Args:
        in_channels: C.
        out_channels: N.
        kernel: height and width of the kernel.
        stride: step of the window.
        pad: zeros around the image: on each side, or (top, bottom, left, right).
        bias: whether there is one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        pad: int | Padding = 0,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, bias=bias)
        self.pad = pad

    def forward(
        self, x: Tensor, residual: Tensor | None = None, out_dtype: torch.dtype | None = None
    ) -> Tensor:
        """Convolve x [B, h, w, C] and add ``residual`` [B, v, u, N]; see :func:`vision_accel.ops.conv2d`."""
        pointwise = self.kernel_size == (1, 1) and self.stride == (1, 1) and self.pad == 0
        if pointwise and x.dtype == self.weight.dtype and out_dtype in (None, x.dtype):
            return ops.linear(x, self.weight, self.bias, residual=residual)
        return ops.conv2d(
            x,
            self.weight,
            self.bias,
            residual=residual,
            stride=self.stride[0],
            padding=self.pad,
            out_dtype=out_dtype,
        )


class UpsampleConv2d(Conv2d):
    """Nearest-neighbour upsampling to twice the size, and a 3 x 3 convolution behind it."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, pad=1)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, out_dtype: torch.dtype | None = None
    ) -> Tensor:
        """[B, h, w, C] -> [B, 2 h, 2 w, N]; it has no residual and keeps the dtype of x."""
        return ops.upsample_conv2d(x, self.weight, self.bias)


def convolve(
    layer: torch.nn.Module, x: Tensor, residual: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """A :class:`Conv2d` with its epilogue; one step after the other where the layer is not plain."""
    if residual is not None and not is_plain(layer, Conv2d):
        return residual + convolve(layer, x, out_dtype=residual.dtype)
    if isinstance(layer, Conv2d):
        y: Tensor = layer(x, residual, out_dtype)
        return y
    return layer(x).to(x.dtype if out_dtype is None else out_dtype)
