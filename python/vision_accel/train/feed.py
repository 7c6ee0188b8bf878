# SPDX-License-Identifier: Apache-2.0
"""The training batches of one process, and the record of what they hold."""

from pathlib import Path

from torch import Tensor

from vision_accel.data.dali import DaliLoader, create_loader
from vision_accel.data.loader import Loader
from vision_accel.data.sampler import BatchPlan, Order
from vision_accel.data.source import Source
from vision_accel.train.bad_samples import BadSamples
from vision_accel.train.config import Config
from vision_accel.train.distributed import World
from vision_accel.train.errors import ConfigError
from vision_accel.train.run_dir import RunDir
from vision_accel.train.sample_log import SampleLog
from vision_accel.train.tasks import Task


class Feed:
    """What the options and a task make of the data.

    Args:
        config: the options.
        task: its model has been created.
        world: the processes of the run.
        run_dir: None but in the leading process.

    Attributes:
        size: training samples in an epoch.
        bad: samples that cannot be used.

    Raises:
        ConfigError: an option does not fit the data.
    """

    def __init__(self, config: Config, task: Task, world: World, run_dir: RunDir | None) -> None:
        data, options = config.data, config.train
        self.config, self.task, self.world = config, task, world
        self.samples = task.samples
        self.size: int = len(self.samples)  # type: ignore[arg-type]
        # A task of the user's own need not have a source.
        self.source: Source | None = getattr(self.samples, "source", None)
        self.problems = [] if self.source is None else self.source.problems
        self.bad = BadSamples(world, run_dir, data, self.size + len(self.problems))
        self.log: SampleLog | None = None
        if data.log_samples:
            if self.source is None:
                raise ConfigError("data.log_samples: the task does not name its samples")
            self.log = SampleLog(Path(options.out), world.rank, self.source)
        sizes = getattr(self.source, "sizes", [self.size])
        try:
            self.order = Order(
                sizes,
                options.seed,
                data.repeats,
                weights=data.weights,
                replace=data.resample,
                block=data.shuffle_block,
            )
        except ValueError as e:
            raise ConfigError(f"data.weights: {e}") from e

    def continue_from(self, step: int) -> None:
        """Take over the records of a run that goes on at a step."""
        self.bad.continue_run()
        if self.log is not None:
            self.log.continue_from(step)

    def loader(self, start: int, stop: int) -> Loader | DaliLoader:
        """Batches of the steps from ``start`` to ``stop``."""
        data, world = self.config.data, self.world
        self.bad.note(self.problems)
        try:
            plan = BatchPlan(
                self.order,
                data.batch_size,
                start,
                stop,
                self.config.train.accumulate,
                world.rank,
                world.size,
            )
        except ValueError as e:
            raise ConfigError(f"data.batch_size: {e}") from e
        return create_loader(
            self.samples,
            plan,
            self.task.collate,
            dali=self.config.dali(),
            batch_size=data.batch_size // (self.config.train.accumulate * world.size),
            device=world.device,
            workers=self.config.worker_count(),
            start_method=data.start_method,
            timeout=data.worker_timeout,
            pin_memory=world.device.type == "cuda",
        )

    def next(self, loader: Loader | DaliLoader, step: int) -> dict[str, Tensor]:
        """The next micro-batch of a step, on the device."""
        batch = next(loader)
        self.bad.note(batch.bad)
        if self.log is not None:
            self.log.add(step, batch.indices)
        return {k: v.to(self.world.device, non_blocking=True) for k, v in batch.tensors.items()}
