# SPDX-License-Identifier: Apache-2.0
"""Mixup and CutMix on a batch."""

import math

import numpy as np
import torch
from torch import Tensor


def mix(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    rng: np.random.Generator,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    prob: float = 1.0,
    switch_prob: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Mix every image with the one at the mirrored place of the batch, and the labels alike.

    One mixing ratio is drawn for the whole batch (timm's ``mode="batch"``). CutMix corrects the ratio to the
    area that was really pasted.

    Args:
        images: [B, 3, h, w]; not changed.
        labels: [B] int64.
        num_classes: K.
        rng: the only source of randomness.
        mixup: alpha of mixup's beta distribution; 0 turns mixup off.
        cutmix: alpha of CutMix's beta distribution; 0 turns CutMix off.
        prob: probability that the batch is mixed at all.
        switch_prob: probability of CutMix where both are on.

    Returns:
        images [B, 3, h, w] and soft targets [B, K] float32.

    Source: Zhang et al. 2018, arXiv:1710.09412; Yun et al. 2019, arXiv:1905.04899; ``timm.data.Mixup``.
    """
    ratio = 1.0
    if (mixup > 0 or cutmix > 0) and rng.random() < prob:
        paste = cutmix > 0 and (mixup <= 0 or rng.random() < switch_prob)
        alpha = cutmix if paste else mixup
        ratio = float(rng.beta(alpha, alpha))
        if ratio < 1.0 and paste:
            images, ratio = _cutmix(images, ratio, rng)
        elif ratio < 1.0:
            images = images * ratio + images.flip(0) * (1.0 - ratio)
    targets = torch.nn.functional.one_hot(labels, num_classes).float()
    return images, targets * ratio + targets.flip(0) * (1.0 - ratio)


def _cutmix(images: Tensor, ratio: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    h, w = images.shape[-2:]
    side = math.sqrt(1.0 - ratio)
    cut_h, cut_w = int(h * side), int(w * side)
    y, x = int(rng.integers(0, h)), int(rng.integers(0, w))
    top, bottom = max(y - cut_h // 2, 0), min(y + (cut_h + 1) // 2, h)
    left, right = max(x - cut_w // 2, 0), min(x + (cut_w + 1) // 2, w)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return mixed, 1.0 - (bottom - top) * (right - left) / (h * w)
