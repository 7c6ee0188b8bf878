# SPDX-License-Identifier: Apache-2.0
"""Where a model runs, and in what."""

import torch

import vision_accel as va


def choose_device(name: str | torch.device, local_rank: int = 0) -> torch.device:
    """The torch device of a name; ``cuda`` is the GPU ``local_rank``.

    ``auto`` is a GPU when there is one and this build has CUDA kernels, else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        built = va.info()["cuda"].startswith("built with CUDA")
        name = "cuda" if built and torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise ValueError(f"device: no such device: {name!r}") from e
    if device.type == "cuda":
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device: {device} is not there ({torch.cuda.device_count()} GPUs found)")
    return device


def choose_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A floating dtype, by itself or by its name in torch; None stays None.

    Raises:
        ValueError: there is no such dtype, or it is not floating.
    """
    if dtype is None:
        return None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    raise ValueError(f"dtype must be a floating one such as 'bfloat16', got {dtype!r}")
