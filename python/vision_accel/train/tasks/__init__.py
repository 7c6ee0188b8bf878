# SPDX-License-Identifier: Apache-2.0
"""What models are trained to do. The loop is the same for all of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset

import vision_accel as va
from vision_accel.data.loader import Batch, Sample
from vision_accel.train.config import Config, ModelOptions
from vision_accel.train.distributed import World
from vision_accel.train.errors import ConfigError
from vision_accel.train.evaluate import EvalOptions


class Task(Protocol):
    """One kind of training: what a sample is, what the loss is, how a model is judged and saved."""

    best: str
    """The evaluation metric that chooses the best model: the largest value wins, the later one of equals."""

    @property
    def samples(self) -> Dataset[Sample]:
        """Training samples by ``data.sampler.Key``; ``len()`` is the size of an epoch."""

    def collate(self, samples: list[Sample]) -> Batch:
        """Make one micro-batch (in a worker process)."""

    def create_model(self) -> nn.Module:
        """The model at the start of the run, on the CPU."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor], rng: np.random.Generator) -> Tensor:
        """Mean loss of a micro-batch whose tensors are on the model's device.

        Everything random comes from ``rng``, or from torch's generator inside the model: the loop seeds both
        from the step, which makes a resumed run exact.
        """

    def evaluate(self, model: nn.Module, interrupted: Callable[[], bool]) -> dict[str, Any] | None:
        """Metrics of the model, or None where there is nothing to evaluate on or it was interrupted.

        Called in every process of the run; ``interrupted`` is to be asked after each batch.
        """

    def export(self, model: nn.Module, directory: Path) -> None:
        """Save the model in its users' layout."""


@runtime_checkable
class JoinedTask(Protocol):
    """A task whose loss needs all samples of a step together, however many micro-batches they come in."""

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """What the loss is made of; tensors with a batch axis, and scalars."""

    def joined_loss(self, outputs: Sequence[Tensor]) -> Tensor:
        """Loss of the outputs of several micro-batches, each joined along the batch axis."""


def create_task(config: Config, world: World) -> Task:
    """The task that the options name."""
    from vision_accel.train.tasks.autoencode import Autoencode  # noqa: PLC0415  a task imports this module
    from vision_accel.train.tasks.classify import Classify  # noqa: PLC0415  a task imports this module
    from vision_accel.train.tasks.contrastive import Contrastive  # noqa: PLC0415

    tasks: dict[str, Callable[[Config, World], Task]] = {
        "classify": Classify,
        "autoencode": Autoencode,
        "contrastive": Contrastive,
    }
    return tasks[config.task](config, world)


def start_model(
    options: ModelOptions, settings: dict[str, Any], create: Callable[..., Any] = va.create_model
) -> Any:
    """The model of the checkpoint or else of the name in the options. Raises ConfigError."""
    try:
        if options.init_from:
            return va.load(options.init_from, **settings).train()
        return create(options.name, **settings)
    except (OSError, TypeError, ValueError) as e:
        raise ConfigError(f"model{'.init_from' if options.init_from else ''}: {e}") from e


def eval_options(config: Config) -> EvalOptions:
    """How a run evaluates."""
    data = config.data
    return EvalOptions(
        data.eval_batch_size,
        config.worker_count(),
        data.start_method,
        config.train.precision,
        data.max_bad_fraction,
        config.dali(evaluation=True),
    )
