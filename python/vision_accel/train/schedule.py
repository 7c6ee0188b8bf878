# SPDX-License-Identifier: Apache-2.0
"""The learning rate as a pure function of the step."""

import math

from vision_accel.train.config import ScheduleOptions


def learning_rate(options: ScheduleOptions, peak: float, step: int, total: int) -> float:
    """Learning rate of one optimiser step.

    Args:
        options: shape of the schedule.
        peak: learning rate after the warm-up.
        step: 0 to total - 1.
        total: steps of the whole run.

    Source: cosine: Loshchilov & Hutter 2017, arXiv:1608.03983; cool-down: Zhai et al. 2022, arXiv:2106.04560.
    """
    warmup = options.warmup_steps
    if warmup is None:
        warmup = round(options.warmup_fraction * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    if options.name == "cosine":
        done = (step - warmup) / max(1, total - warmup)
        return options.final_lr + (peak - options.final_lr) * 0.5 * (1 + math.cos(math.pi * done))
    if options.name == "cooldown":
        length = max(1, round(options.cooldown_fraction * total))
        left = min(1.0, (total - step) / length)
        return options.final_lr + (peak - options.final_lr) * left
    return peak
