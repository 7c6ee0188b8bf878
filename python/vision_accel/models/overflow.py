# SPDX-License-Identifier: Apache-2.0
"""What overflows in float16 is computed in float32 from then on.

The stream of an autoencoder is float32 already. What is stored in 16 bits are the outputs of norms, the
queries, keys and values, and the result; only extreme weights make them larger than float16 holds.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from vision_accel.nn.resnet import ResnetBlock, SpatialAttention
from vision_accel.ops._layout import autocasts

_LARGEST = torch.finfo(torch.float16).max


def without_overflow(model: Any, name: str, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
    """``run()``; where its result is not finite, again, with the layers that overflow turned to float32.

    They stay so, and one warning names them. It looks at the result of models with float16 weights only, and
    not in training (whose loss scaling wants to see infinity), under autocast, compiled, or in a CUDA graph.

    Args:
        model: an autoencoder.
        name: its part that runs, ``encoder`` or ``decoder``.
        x: what goes in.
        run: gives the result, in the dtype of the model.
    """
    y = run()
    if not _looks_at(model, y) or _peak(y) < math.inf:
        return y
    if not all(bool(t.isfinite().all()) for t in (x, *model.parameters())):
        return y
    notes = []
    layers = _mended(getattr(model, name), run)
    if layers:
        y = run()
        names = ", ".join(f"{name}.{layer}" for layer in layers)
        notes.append(f"float16 overflows in {names}: computed in float32 from now on")
    if _peak(y) == math.inf:
        y = y.clamp(-_LARGEST, _LARGEST)
        notes.append(f"results of the {name} are limited to {_LARGEST:.0f}, the largest that float16 holds")
    if notes:
        warnings.warn(f"{type(model).__name__}: {'; '.join(notes)}", RuntimeWarning, stacklevel=3)
    return y


def _looks_at(model: Any, y: Tensor) -> bool:
    watched = model.dtype == torch.float16 and y.device.type in ("cpu", "cuda") and y.numel() > 0
    training = model.training and torch.is_grad_enabled()
    if not watched or training or autocasts(y) or torch.compiler.is_compiling():
        return False
    return not (y.is_cuda and torch.cuda.is_current_stream_capturing())


def _peak(y: Tensor) -> float:
    return float(y.detach().abs().amax())


def _mended(part: Any, run: Callable[[], Tensor]) -> list[str]:
    """Turn layers that overflow to float32, as ``run()`` meets them; gives their names."""
    last: tuple[nn.Module, ...] = (part.conv_norm_out, part.conv_out)
    watched = {last[0]: ("conv_norm_out", last)}  # what to look at: a name, and what then becomes float32
    for name, module in part.named_modules():
        if isinstance(module, ResnetBlock):
            watched[module.norm1] = watched[module.norm2] = name, (module,)
        elif isinstance(module, SpatialAttention):
            watched[module] = name, (module,)
    found = []

    def hook(module: nn.Module, inputs: Any, y: Any) -> Any:
        if module not in watched or y.isfinite().all():
            return None
        name, layers = watched.pop(module)
        found.append(name)
        for layer in layers:
            layer.float()
        return module(*inputs)

    # For all modules: hooks of their own would keep the model from being cut into stripes.
    handle = register_module_forward_hook(hook)
    try:
        run()
    finally:
        handle.remove()
    return found
