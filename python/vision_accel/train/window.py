# SPDX-License-Identifier: Apache-2.0
"""What happened in the steps since the last line of metrics."""

import torch
from torch import Tensor


class Window:
    """Losses, learning rate, gradient norm and time of some steps."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.lr = self.norm = self.seconds = 0.0
        self.steps = 0

    def add(self, loss: Tensor | None, lr: float, norm: float, seconds: float) -> None:
        """Note one step; a skipped one has no loss."""
        if loss is not None:
            self.losses.append(loss)
        self.lr, self.norm = lr, norm
        self.seconds += seconds
        self.steps += 1

    def loss(self) -> tuple[float, float]:
        """Sum and number of the losses of the steps that were not skipped."""
        return float(torch.stack(self.losses).sum()) if self.losses else 0.0, float(len(self.losses))

    def brief(self) -> dict[str, str]:
        """What the progress bar shows."""
        loss = f"{float(self.losses[-1]):.3f}" if self.losses else "-"
        return {"loss": loss, "lr": f"{self.lr:.2e}"}
