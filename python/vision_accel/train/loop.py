# SPDX-License-Identifier: Apache-2.0
"""The training loop: the same for every task, exact when resumed."""

import contextlib
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from vision_accel import ops
from vision_accel.data.dali import DaliLoader
from vision_accel.data.loader import Loader, worker_error
from vision_accel.data.sampler import Stream, generator
from vision_accel.train import checkpoint, optim, sharding
from vision_accel.train.checkpoint import Checkpoint
from vision_accel.train.config import Config
from vision_accel.train.distributed import World, join
from vision_accel.train.ema import Ema
from vision_accel.train.errors import CheckpointError, TrainingError
from vision_accel.train.evaluate import autocast
from vision_accel.train.feed import Feed
from vision_accel.train.joined import joined_backward
from vision_accel.train.run_dir import RunDir
from vision_accel.train.scaler import LossScaler
from vision_accel.train.schedule import learning_rate
from vision_accel.train.sharding import load_weights, local, whole_weights
from vision_accel.train.stop import Stop, stop_signals
from vision_accel.train.tasks import JoinedTask, Task, create_task
from vision_accel.train.window import Window

_log = logging.getLogger(__name__)
_MAX_SKIPPED = 10  # steps in a row without usable gradients
_DRAW_EVERY = 60.0  # seconds between drawings of the curves


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    run_dir: Path
    step: int
    """Steps done, those of earlier parts of a resumed run included."""
    epoch: float
    metrics: dict[str, Any]
    """The last evaluation."""
    best: float | None
    """The best value of the task's metric in any evaluation."""
    skipped_steps: int
    """Steps skipped because of NaN or infinite gradients."""
    bad_samples: int
    """Files that could not be read; bad_samples.jsonl names them."""
    stopped_by: str
    """Name of the signal that ended the run early, or empty."""


def fit(config: Config, task: Task | None = None) -> RunResult:
    """Train a model as the options say, or go on with a run that was interrupted.

    SIGTERM and SIGINT save a checkpoint after the current step and return. Under torchrun, every process
    calls this.

    Args:
        config: the options.
        task: what to learn, if it is not one of those that ``config.task`` names.

    Raises:
        ConfigError: an option cannot be used.
        DataError: the data cannot be used, or a data loading worker died.
        CheckpointError: a file of the run directory cannot be written or read.
        TrainingError: gradients stay NaN or infinite.
    """
    config.check()
    with join(config.train.device) as world, stop_signals() as stop:
        try:
            return _Run(config, task or create_task(config, world), world, stop).run()
        except RuntimeError as e:
            if clear := worker_error(e):
                raise clear from e
            raise


class _Run:
    """The state of one run. All of it that matters is in ``_checkpoint``."""

    def __init__(self, config: Config, task: Task, world: World, stop: Stop) -> None:
        self.config, self.task, self.world, self.stop = config, task, world, stop
        options = config.train
        self.dir = RunDir(config) if world.leads else None
        torch.manual_seed(_torch_seed(options.seed))
        self.model = task.create_model().to(world.device).train()
        self.ema = Ema(self.model, options.ema_decay, options.ema_warmup) if options.ema_decay else None
        self.skeleton: sharding.Skeleton | None = None
        if options.parallel == "fsdp" and world.size > 1:
            self.skeleton = sharding.Skeleton(self.model)
            for model in [self.model, *([self.ema.model] if self.ema else [])]:
                sharding.shard(model, world)
        self.optimizer = optim.create_optimizer(self.model, config.optim)
        self.scaler = LossScaler(enabled=options.precision == "fp16")

        self.feed = Feed(config, task, world, self.dir)
        self.size = self.feed.size
        batch = config.data.batch_size
        self.total = options.steps or max(1, math.ceil(options.epochs * self.size / batch))
        self.step = self.skipped = self.skipped_in_row = 0
        self.evaluated = self.saved = 0  # the step at which this was last done
        self.best: float | None = None
        self.metrics: dict[str, Any] = {}
        self.window = Window()
        self.drawn = time.monotonic()

        if options.resume:
            self._resume()
        self.parallel: nn.Module = self.model
        if world.size > 1 and self.skeleton is None:
            gpus = [world.device.index] if world.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.model, device_ids=gpus)

    # The loop.

    def run(self) -> RunResult:
        loader = self.feed.loader(self.step, self.total)
        # None: tqdm is silent where the output is not a terminal.
        bar = tqdm(
            total=self.total, initial=self.step, unit="step", disable=None if self.world.leads else True
        )
        with loader, bar, logging_redirect_tqdm() if not bar.disable else contextlib.nullcontext():
            while self._boundary():
                self._train_step(loader)
                if not bar.disable:
                    bar.set_postfix(self.window.brief(), refresh=False)
                    bar.update()
        return self._finish()

    def _boundary(self) -> bool:
        """Between two steps: log, evaluate, save. Whether to go on."""
        options = self.config.train
        stopped = self.world.any(bool(self.stop.name))
        end = self.step >= self.total
        if self.window.steps and (end or stopped or self.step % options.log_every == 0):
            self._log()
        if (end or self._due(options.eval_every)) and not stopped and self.evaluated < self.step:
            self._evaluate()
            stopped = self.world.any(bool(self.stop.name))
        if (end or stopped or self._due(options.save_every)) and self.saved < self.step:
            self._save()
        return not (end or stopped)

    def _due(self, every: int | None) -> bool:
        """Whether this is one of the steps: every so many, or the first after the end of an epoch."""
        if every is not None:
            return self.step % every == 0
        batch = self.config.data.batch_size
        return self.step * batch // self.size > (self.step - 1) * batch // self.size

    def _train_step(self, loader: Loader | DaliLoader) -> None:
        """One step of the optimiser, or none if the gradients are not finite."""
        options = self.config.train
        started = time.perf_counter()
        lr = learning_rate(self.config.schedule, self.config.optim.lr, self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        losses = []
        if options.accumulate > 1 and isinstance(self.task, JoinedTask):
            batches = [self.feed.next(loader, self.step) for _ in range(options.accumulate)]
            losses.append(self._joined_backward(self.task, batches))
        else:
            for m in range(options.accumulate):
                tensors = self.feed.next(loader, self.step)
                with self._unsynced(m < options.accumulate - 1):
                    losses.append(self._backward(tensors, m * self.world.size + self.world.rank))

        norm = self._grad_norm() / self.scaler.scale
        finite = math.isfinite(norm)
        if finite:
            clip = self.config.optim.clip_norm
            factor = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
            self.optimizer.step(grad_scale=factor / self.scaler.scale)
            if self.ema is not None:
                self.ema.update(self.model)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.update(finite)
        self.step += 1
        seconds = time.perf_counter() - started
        self.window.add(torch.stack(losses).mean() if finite else None, lr, norm, seconds)
        self.skipped += not finite
        self.skipped_in_row = 0 if finite else self.skipped_in_row + 1
        if self.skipped_in_row >= _MAX_SKIPPED:
            self._log()
            raise TrainingError(
                f"steps {self.step - _MAX_SKIPPED} to {self.step - 1} had NaN or infinite gradients and were"
                f" skipped (learning rate {lr:.3g}, loss {float(losses[-1]):.3g}, loss scale"
                f" {self.scaler.scale:g}); the last checkpoint is of step {self.saved}"
            )

    def _joined_backward(self, task: JoinedTask, batches: list[dict[str, Tensor]]) -> Tensor:
        options = self.config.train

        def outputs(m: int) -> tuple[Tensor, ...]:
            torch.manual_seed(_torch_seed(options.seed, self.step, m * self.world.size + self.world.rank))
            with autocast(self.world.device, options.precision):
                return task.outputs(self.parallel, batches[m])

        return joined_backward(len(batches), outputs, task.joined_loss, self._unsynced, self.scaler.scale)

    def _backward(self, tensors: dict[str, Tensor], place: int) -> Tensor:
        """Add the gradients of one micro-batch. All that is random depends on (seed, step, place) alone."""
        options = self.config.train
        torch.manual_seed(_torch_seed(options.seed, self.step, place))
        rng = generator(options.seed, Stream.MIX, self.step, place)
        with autocast(self.world.device, options.precision):
            loss = self.task.loss(self.parallel, tensors, rng)
        (loss * (self.scaler.scale / options.accumulate)).backward()
        return loss.detach().float()

    def _grad_norm(self) -> float:
        norm = float(ops.grad_norm([local(p.grad) for p in self.model.parameters() if p.grad is not None]))
        return norm if self.skeleton is None else math.sqrt(self.world.sum([norm * norm])[0])

    def _unsynced(self, more: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients travel between processes only after the last micro-batch of a step."""
        if more and isinstance(self.parallel, DistributedDataParallel):
            return self.parallel.no_sync()
        if isinstance(self.parallel, FSDPModule):
            self.parallel.set_requires_gradient_sync(not more)
        return contextlib.nullcontext()

    def _finish(self) -> RunResult:
        last = self.config.train.export == "last" or self.best is None
        last = last or (self.dir is not None and not self.dir.model.exists())
        if self.world.any(last) and not self.world.any(bool(self.stop.name)):
            self._export(self._result())
        if self.dir is not None:
            if self.dir.metrics():
                self.dir.draw()
            self.dir.close()
        return RunResult(
            run_dir=Path(self.config.train.out),
            step=self.step,
            epoch=self._epoch(),
            metrics=self.metrics,
            best=self.best,
            skipped_steps=self.skipped,
            bad_samples=len(self.feed.bad.errors),
            stopped_by=self.stop.name,
        )

    # What happens between steps.

    def _log(self) -> None:
        self.feed.bad.share()
        window, self.window = self.window, Window()
        loss, count = self.world.sum([*window.loss()])
        if self.dir is None:
            return
        images = window.steps * self.config.data.batch_size
        self.dir.log(
            {
                "step": self.step,
                "epoch": self._epoch(),
                "loss": loss / count if count else None,
                "lr": window.lr,
                "grad_norm": window.norm,
                "images_per_s": round(images / max(window.seconds, 1e-9), 2),
                "skipped_steps": self.skipped,
            }
        )

    def _evaluate(self) -> None:
        model = self._result()
        metrics = self.task.evaluate(model, lambda: bool(self.stop.name))
        if metrics is None:
            return
        self.metrics, self.evaluated = metrics, self.step
        score = metrics[self.task.best]
        better = self.best is None or score >= self.best
        self.best = score if better else self.best
        if self.dir is not None:
            self.dir.log({"step": self.step, "epoch": self._epoch(), **metrics, "ema": self._averaged()})
            values = ", ".join(f"{k.removeprefix('eval_')} {v:.4f}" for k, v in metrics.items())
            _log.info("step %d of %d: %s", self.step, self.total, values)
            if better and self.config.train.export == "best":
                self._export(model)

    def _averaged(self) -> bool:
        return self.ema is not None and self.config.train.ema_eval

    def _result(self) -> nn.Module:
        """The model to evaluate and export. All processes must ask for it together."""
        model = self.ema.model if self.ema is not None and self._averaged() else self.model
        return model if self.skeleton is None else self.skeleton.filled(model)

    def _export(self, model: nn.Module) -> None:
        if self.dir is not None:
            self.dir.export(lambda folder: self.task.export(model, folder))

    def _save(self) -> None:
        self.feed.bad.share()
        self.saved = self.step
        state = self._checkpoint()
        if self.dir is None:
            return
        checkpoint.save(state, self.dir.checkpoints, self.config.train.keep, self.dir.latest)
        if time.monotonic() - self.drawn > _DRAW_EVERY:
            self.dir.draw()
            self.drawn = time.monotonic()

    def _checkpoint(self) -> Checkpoint:
        slots, values = optim.pack_state(self.model, self.optimizer)
        tensors = {"model": whole_weights(self.model), "optimizer": slots}
        if self.ema is not None:
            tensors["ema"] = whole_weights(self.ema.model)
        state = {
            "optimizer": values,
            "scaler": self.scaler.state(),
            "ema_updates": self.ema.updates if self.ema is not None else 0,
            "skipped": self.skipped,
            "skipped_in_row": self.skipped_in_row,
            "evaluated": self.evaluated,
            "best": self.best,
            "metrics": self.metrics,
        }
        return Checkpoint(self.step, tensors, state)

    def _resume(self) -> None:
        """Take over the newest intact checkpoint. All processes must see the same run directory."""
        folder = Path(self.config.train.out) / "checkpoints"
        found = checkpoint.load_latest(folder) if self.dir is not None else None
        step = int(self.world.sum([float(found.step if found else 0)])[0])
        if self.dir is not None:
            for change in self.dir.changes:
                _log.warning("resumed with another option: %s", change)
            self.dir.continue_from(step)
        self.feed.continue_from(step)
        if not step:
            _log.warning("%s: no checkpoint to resume from; starting from the beginning", folder)
            return
        saved = found or checkpoint.load(folder / f"step_{step:06d}")
        try:
            load_weights(self.model, saved.tensors["model"])
            values = saved.state["optimizer"]
            optim.unpack_state(self.model, self.optimizer, saved.tensors["optimizer"], values)
            if self.ema is not None:
                load_weights(self.ema.model, saved.tensors.get("ema", saved.tensors["model"]))
                self.ema.updates = saved.state["ema_updates"]
            self.scaler.load(saved.state["scaler"])
            for name in ("skipped", "skipped_in_row", "evaluated", "best", "metrics"):
                setattr(self, name, saved.state[name])
        except (KeyError, RuntimeError, ValueError) as e:
            reason = " ".join(str(e).split())
            raise CheckpointError(f"{folder}: the checkpoint does not fit the options: {reason}") from e
        self.step = self.saved = step
        _log.info("resumed at step %d of %d", step, self.total)

    # Small things.

    def _epoch(self) -> float:
        return round(self.step * self.config.data.batch_size / self.size, 6)


def _torch_seed(seed: int, *place: int) -> int:
    return int(generator(seed, Stream.MODEL, *place).integers(2**63))
