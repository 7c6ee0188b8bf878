# SPDX-License-Identifier: Apache-2.0
"""What each op means, in plain torch. One function per op, same arguments, any floating dtype."""

import torch
from torch import Tensor


def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float = 1e-6,
    *,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    s = x if residual is None else x + residual
    y = torch.nn.functional.layer_norm(s, s.shape[-1:], weight, bias, eps)
    return y if residual is None else (y, s)
