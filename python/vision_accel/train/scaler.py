# SPDX-License-Identifier: Apache-2.0
"""Loss scaling for float16."""

from typing import Any


class LossScaler:
    """A power of two that keeps float16 gradients in range: halved on overflow, doubled after a quiet while.

    Source: Micikevicius et al. 2018, arXiv:1710.03740; the constants are those of ``torch.amp.GradScaler``.
    """

    def __init__(self, enabled: bool, initial: float = 2.0**16, growth_interval: int = 2000) -> None:
        self.enabled, self.growth_interval = enabled, growth_interval
        self.scale = initial if enabled else 1.0
        self.good_steps = 0

    def update(self, finite: bool) -> None:
        """Say whether the gradients of a step were finite."""
        if not self.enabled:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self.good_steps == self.growth_interval:
            self.scale *= 2
            self.good_steps = 0

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` returned."""
        if self.enabled:
            self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
