# SPDX-License-Identifier: Apache-2.0
"""Where a model runs."""

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
