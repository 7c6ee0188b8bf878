# SPDX-License-Identifier: Apache-2.0
"""What the reconstructions of an autoencoder are judged by while it is trained, and afterwards."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vision_accel.train.errors import ConfigError


class PatchDiscriminator(nn.Sequential):
    """Says of overlapping patches of an image how real they look: [B, 3, h, w] -> logits [B, 1, ., .].

    Source: Isola et al. 2016 (pix2pix), arXiv:1611.07004, as used by Esser et al. 2020, arXiv:2012.09841.
    """

    def __init__(self, channels: int, width: int = 64, layers: int = 3) -> None:
        steps: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        now = width
        for i in range(1, layers + 1):
            before, now = now, width * min(2**i, 8)
            stride = 2 if i < layers else 1
            steps += [
                nn.Conv2d(before, now, 4, stride, 1, bias=False),
                nn.BatchNorm2d(now),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*steps, nn.Conv2d(now, 1, 4, 1, 1))
        for module in self:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)


def discriminator_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """How well real images are told from reconstructions: ``hinge`` or ``vanilla``."""
    if kind == "hinge":
        return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())
    return 0.5 * (functional.softplus(-real).mean() + functional.softplus(fake).mean())


def load_lpips(weights: str) -> nn.Module:
    """LPIPS with the weights of a file, frozen.

    Args:
        weights: the state dict of ``lpips.LPIPS(net="vgg")``, saved with ``torch.save`` or as safetensors.

    Raises:
        ConfigError: the package or the file is missing, or the file holds something else.

    Source: Zhang et al. 2018, arXiv:1801.03924.
    """
    try:
        import lpips  # noqa: PLC0415  optional
    except ImportError as e:
        raise ConfigError("autoencode.perceptual_weights: needs `pip install lpips`") from e
    from vision_accel.io.tensors import read_file  # noqa: PLC0415

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls torchvision the old way
            model: Any = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
        model.load_state_dict(read_file(Path(weights)))
    except (OSError, RuntimeError, ValueError) as e:
        raise ConfigError(f"autoencode.perceptual_weights: {' '.join(str(e).split())}") from e
    frozen: nn.Module = model.eval().requires_grad_(False)
    return frozen


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair of images [B, C, h, w] in [0, 1]: [B]."""
    error = (x.double() - y.double()).square().mean((1, 2, 3))
    return -10 * torch.log10(error.clamp(min=1e-10))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of each pair of images [B, C, h, w] in [0, 1], at least 11 x 11: [B].

    Source: Wang et al. 2004, with its Gaussian window of 11 pixels and standard deviation 1.5.
    """
    x, y = x.double(), y.double()
    c = x.shape[1]
    offsets = torch.arange(11, dtype=torch.float64, device=x.device) - 5
    bell = torch.exp(-(offsets**2) / (2 * 1.5**2))
    bell /= bell.sum()

    def smooth(t: Tensor) -> Tensor:
        t = functional.conv2d(t, bell.view(1, 1, 1, 11).expand(c, 1, 1, 11), groups=c)
        return functional.conv2d(t, bell.view(1, 1, 11, 1).expand(c, 1, 11, 1), groups=c)

    mx, my = smooth(x), smooth(y)
    vx, vy, vxy = smooth(x * x) - mx * mx, smooth(y * y) - my * my, smooth(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return value.mean((1, 2, 3))
