# SPDX-License-Identifier: Apache-2.0
"""Winograd's algorithm for 3 x 3 convolutions on the CPU: when it is taken, and its weights.

Source: Lavin & Gray 2015, arXiv:1509.09308, F(2 x 2, 3 x 3). Larger tiles take fewer products still, but
err by more than twice what a plain sum does.
"""

import torch
from torch import Tensor

_LEAST_CHANNELS = 32  # below this the transforms cost more than the products that they save
_LEAST_TRAINED_PIXELS = 4096  # below this it does not pay to transform a weight that is to change

# [points, taps] in one dimension; see the schemes in csrc/kernels/conv2d/winograd.h.
_SAME_SIZE = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
_TWICE_SIZE = ((1.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 1.0))


def suits(x: Tensor, weight: Tensor, height: int, width: int, train: bool) -> bool:
    """Whether a convolution of stride 1 with a result of that size is done so; the batch has no say."""
    return (
        weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= _LEAST_CHANNELS
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and (not train or height * width >= _LEAST_TRAINED_PIXELS)
    )


def same_size(weight: Tensor) -> Tensor:
    """The points of a weight [N, C, 3, 3]: [16, N, C]."""
    return _points(weight, _SAME_SIZE)


def twice_size(weight: Tensor) -> Tensor:
    """The points of the weight of a convolution behind an upsampling: [9, N, C]."""
    return _points(weight, _TWICE_SIZE)


def _points(weight: Tensor, scheme: tuple[tuple[float, ...], ...]) -> Tensor:
    # In float64 the sums are exact, so that the number of torch's threads cannot show.
    g = torch.tensor(scheme, dtype=torch.float64)
    n, c = weight.shape[:2]
    taps = weight.reshape(n * c, 9).double()
    return torch.einsum("pt,wt->pw", torch.kron(g, g), taps).to(weight.dtype).view(-1, n, c)
