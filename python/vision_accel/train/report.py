# SPDX-License-Identifier: Apache-2.0
"""Metrics for other programs: TensorBoard and Weights & Biases."""

from pathlib import Path
from typing import Any, Protocol

from vision_accel.train.config import Config
from vision_accel.train.errors import ConfigError


class Reporter(Protocol):
    """Takes every line of metrics."""

    def log(self, record: dict[str, Any]) -> None:
        """One line: ``step`` and numbers (None where there is none)."""

    def close(self) -> None:
        """The run is over."""


class TensorBoard:
    """Event files in the run directory."""

    def __init__(self, path: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

        self._writer = SummaryWriter(str(path / "tensorboard"))

    def log(self, record: dict[str, Any]) -> None:
        """See Reporter."""
        for name, value in record.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """See Reporter."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, set up by its own environment variables."""

    def __init__(self, config: Config, path: Path) -> None:
        import wandb  # noqa: PLC0415

        self._run = wandb.init(dir=str(path), name=path.name, config=config.to_dict(), resume="allow")

    def log(self, record: dict[str, Any]) -> None:
        """See Reporter."""
        self._run.log({k: v for k, v in record.items() if v is not None}, step=record["step"])

    def close(self) -> None:
        """See Reporter."""
        self._run.finish()


def create_reporters(config: Config, path: Path) -> list[Reporter]:
    """The reporters that the options ask for.

    Raises:
        ConfigError: a package is missing.
    """
    reporters: list[Reporter] = []
    for name in config.train.report_to:
        try:
            reporters.append(TensorBoard(path) if name == "tensorboard" else Wandb(config, path))
        except ImportError as e:
            raise ConfigError(f"train.report_to: {name} is not installed: pip install {name}") from e
    return reporters
