# SPDX-License-Identifier: Apache-2.0
"""Every option of a training run. The command line and YAML files set the same fields."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from vision_accel._options import from_values, read_yaml
from vision_accel.data.augment import AugmentConfig, TrainTransform, train_transform
from vision_accel.data.dali import DaliOptions
from vision_accel.data.loader import default_workers
from vision_accel.data.preprocess import Preprocess
from vision_accel.train.autoencode_options import AutoencodeOptions
from vision_accel.train.contrastive_options import ContrastiveOptions
from vision_accel.train.errors import ConfigError


@dataclass
class DataOptions:
    """What to train on."""

    train: str = ""
    """Folder with one folder of images per class, or webdataset tars: files, a folder of them or a pattern
    such as data/{000..012}.tar; several sources with :: between them."""
    val: str = ""
    """The same to evaluate on; none if empty."""
    weights: tuple[float, ...] = ()
    """Share of each source of data.train in every epoch, in any unit; in proportion to their sizes if not
    set."""
    resample: bool = False
    """Draw every sample anew (with replacement) instead of going through all of them."""
    shuffle_block: int = 0
    """For tars on slow disks: shuffle runs of so many neighbours, such as 256, read forward; 0 shuffles all
    samples with each other."""
    batch_size: int = 256
    """Images per optimiser step, over all processes and micro-batches."""
    eval_batch_size: int = 64
    """Images per forward pass and process while evaluating."""
    workers: int | None = None
    """Processes that decode and augment, for each training process; one per core, at most 8, if not set; 0
    does it in the training process. With loader dali they only read, and a quarter as many do."""
    loader: Literal["builtin", "dali"] = "builtin"
    """What decodes and augments: the worker processes, or NVIDIA DALI in threads or on the GPU."""
    dali_resize: Literal["auto", "dali", "exact"] = "auto"
    """With dali, for training: "dali" resizes and augments with DALI too; "exact" only decodes with it, and
    pixels are those of the built-in loader; "auto" is exact on the CPU (faster there) and dali on a GPU.
    Evaluation is always exact."""
    dali_threads: int = 0
    """CPU threads of DALI, for each training process; 0: one per core, at most 8."""
    dali_hw_load: float = 0.65
    """Share of the JPEG images that go to the GPU's hardware decoder, where it has one."""
    start_method: Literal["fork", "forkserver", "spawn"] = "fork"
    """How those processes start."""
    worker_timeout: float = 600.0
    """Seconds without a batch after which the run stops with an error; 0 waits for ever."""
    repeats: int = 1
    """Repeated augmentation: how many differently augmented copies of an image stand in a row."""
    max_bad_fraction: float = 0.05
    """Share of the images that may be unreadable before the run stops."""
    log_samples: bool = False
    """Write the names of the samples of every step to samples.RANK.jsonl in the run directory."""


@dataclass
class ModelOptions:
    """What to train."""

    name: str = "vit_small_patch16_224"
    """Name of a new model, as listed by vision_accel.list_models()."""
    init_from: str = ""
    """Checkpoint folder, file or hub id to fine-tune instead of a new model."""
    img_size: int | tuple[int, int] | None = None
    """Height and width of the input in pixels; the model's own if not set."""
    drop_path: float = 0.0
    """Stochastic depth: rate of the last block, growing linearly from the first."""
    patch_dropout: float = 0.0
    """Share of the patches left out of every training step."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    overrides: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Other fields of the model's configuration, such as embed_dim: 48 in a file, or as flags embed_dim 48
    depth 6."""


@dataclass
class OptimOptions:
    """How weights change."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Optimiser."""
    lr: float = 1e-3
    """Peak learning rate for a whole batch (it is not scaled with the batch size)."""
    weight_decay: float = 0.05
    """Decoupled for AdamW, L2 for SGD; norms, biases and tokens are never decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging factors."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    momentum: float = 0.9
    """SGD's momentum (Nesterov)."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer to the one below it; 1 is off."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0 is off."""


@dataclass
class ScheduleOptions:
    """How the learning rate changes."""

    name: Literal["cosine", "constant", "cooldown"] = "cosine"
    """After the warm-up: cosine to the end, constant, or constant with a linear cool-down."""
    warmup_fraction: float = 0.05
    """Share of the run in which the learning rate rises linearly."""
    warmup_steps: int | None = None
    """The same in steps; overrides the fraction."""
    cooldown_fraction: float = 0.2
    """Share of the run in which "cooldown" falls."""
    final_lr: float = 0.0
    """Learning rate at the end of cosine and cooldown."""


@dataclass
class AugmentOptions(AugmentConfig):
    """How training images and labels are varied."""

    mixup: float = 0.0
    """Alpha of mixup; 0 is off."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 is off."""
    mix_prob: float = 1.0
    """Probability that a batch is mixed."""
    mix_switch_prob: float = 0.5
    """Probability of CutMix where both are on."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all classes."""

    def transform(self, recipe: Preprocess) -> TrainTransform:
        """The augmentation of a model's input; a ConfigError says what cannot be used."""
        try:
            return train_transform(recipe, self)
        except ValueError as e:
            raise ConfigError(f"augment: {e}") from e


@dataclass
class TrainOptions:
    """How the run goes."""

    out: str = "runs/vit"
    """Run directory."""
    resume: bool = False
    """Continue from the last complete checkpoint in the run directory, if there is one."""
    epochs: float = 100.0
    """Passes over the training images."""
    steps: int | None = None
    """Optimiser steps; overrides epochs."""
    seed: int = 0
    """Decides the initial weights, the order of images and every augmentation."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 use autocast over fp32 weights; fp16 scales the loss."""
    accumulate: int = 1
    """Micro-batches that a process computes one after the other for one step."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share the work: ddp keeps all weights in each, fsdp (FSDP2) a part in each."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights, such as 0.9999; 0 is off."""
    ema_warmup: bool = True
    """Let the decay grow from small values at the start."""
    ema_eval: bool = True
    """Evaluate and export the averaged weights where there are any."""
    eval_every: int | None = None
    """Steps between evaluations; once per epoch if not set. The end is always evaluated."""
    save_every: int | None = None
    """Steps between checkpoints; once per epoch if not set. The end is always saved."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    keep: int = 3
    """Checkpoints to keep."""
    export: Literal["best", "last"] = "best"
    """Which weights go into the run's model/ folder; "best" needs data.val."""
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Other places that get the metrics."""


@dataclass
class Config:
    """One training run."""

    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    autoencode: AutoencodeOptions = field(default_factory=AutoencodeOptions)
    contrastive: ContrastiveOptions = field(default_factory=ContrastiveOptions)
    task: Literal["classify", "autoencode", "contrastive"] = "classify"
    """What is learned."""

    def check(self) -> None:
        """Raise ConfigError for a value of the wrong type or out of range, naming the option."""
        from_dict(self.to_dict())

    def worker_count(self) -> int:
        """``data.workers``, or what suits this machine."""
        if self.data.workers is not None:
            return self.data.workers
        return default_workers() // (4 if self.data.loader == "dali" else 1)

    def dali(self, *, evaluation: bool = False) -> DaliOptions | None:
        """How DALI loads; None where the built-in loader does."""
        d = self.data
        if d.loader == "builtin":
            return None
        return DaliOptions("exact" if evaluation else d.dali_resize, d.dali_threads, d.dali_hw_load)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, as in a YAML file."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def load_config(path: str | Path) -> Config:
    """Read a YAML file that sets any of the fields of Config.

    Raises:
        ConfigError: unreadable file, unknown option (the message suggests a near one), wrong type or range.
    """
    try:
        return from_dict(read_yaml(Path(path)))
    except ValueError as e:
        raise ConfigError(f"{path}: {e}") from e


def from_dict(values: Any) -> Config:
    """Config from nested plain values; errors as in load_config."""
    try:
        config = from_values(Config, values)
    except ValueError as e:
        raise ConfigError(str(e)) from e
    _check_ranges(config)
    _check_task(config)
    return config


def save_config(config: Config, path: Path) -> None:
    """Write the YAML file that load_config reads back."""
    path.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")


def changed(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """``key: old -> new`` for each option that differs."""
    for key in [*before, *(k for k in after if k not in before)]:
        a, b = before.get(key), after.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from changed(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}: {a} -> {b}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


# Option -> least and largest value; a missing bound is None.
_RANGES: dict[str, tuple[float | None, float | None]] = {
    "data.batch_size": (1, None),
    "data.eval_batch_size": (1, None),
    "data.workers": (0, None),
    "data.worker_timeout": (0, None),
    "data.dali_threads": (0, None),
    "data.dali_hw_load": (0, 1),
    "data.repeats": (1, None),
    "data.shuffle_block": (0, None),
    "data.max_bad_fraction": (0, 1),
    "model.drop_path": (0, 0.999),
    "model.patch_dropout": (0, 0.999),
    "optim.lr": (0, None),
    "optim.weight_decay": (0, None),
    "optim.eps": (0, None),
    "optim.momentum": (0, 1),
    "optim.layer_decay": (0, 1),
    "optim.clip_norm": (0, None),
    "schedule.warmup_fraction": (0, 1),
    "schedule.warmup_steps": (0, None),
    "schedule.cooldown_fraction": (0, 1),
    "schedule.final_lr": (0, None),
    "contrastive.vocab_size": (0, None),
    "contrastive.unlocked_image_groups": (0, None),
    "contrastive.unlocked_text_layers": (0, None),
    "augment.mixup": (0, None),
    "augment.cutmix": (0, None),
    "augment.mix_prob": (0, 1),
    "augment.mix_switch_prob": (0, 1),
    "augment.label_smoothing": (0, 0.999),
    "autoencode.kl_weight": (0, None),
    "autoencode.perceptual_weight": (0, None),
    "autoencode.disc_weight": (0, None),
    "autoencode.disc_start": (0, None),
    "train.epochs": (0, None),
    "train.steps": (1, None),
    "train.seed": (0, None),
    "train.accumulate": (1, None),
    "train.ema_decay": (0, 0.999999999),
    "train.eval_every": (1, None),
    "train.save_every": (1, None),
    "train.log_every": (1, None),
    "train.keep": (1, None),
}


# Options, or groups of them, that only some tasks use.
_OF_TASKS: dict[str, tuple[str, ...]] = {
    "model.drop_path": ("classify", "contrastive"),
    "model.patch_dropout": ("classify", "contrastive"),
    "augment.mixup": ("classify",),
    "augment.cutmix": ("classify",),
    "augment.label_smoothing": ("classify",),
    "autoencode": ("autoencode",),
    "contrastive": ("contrastive",),
}


def _check_task(config: Config) -> None:
    """Raise for an option that would be ignored."""
    values, default = config.to_dict(), Config().to_dict()
    for key, *_ in (change.partition(":") for change in changed(default, values)):
        tasks = _OF_TASKS.get(key) or _OF_TASKS.get(key.partition(".")[0])
        if tasks and config.task not in tasks:
            raise ConfigError(f"{key}: is for the task {' or '.join(tasks)}, not {config.task}")


def _check_ranges(config: Config) -> None:
    for key, (least, largest) in _RANGES.items():
        group, name = key.split(".")
        value = getattr(getattr(config, group), name)
        if value is None:
            continue
        if least is not None and not value >= least:
            raise ConfigError(f"{key}: must be at least {least}, got {value}")
        if largest is not None and not value <= largest:
            raise ConfigError(f"{key}: must be at most {largest}, got {value}")
    if not all(0 <= b < 1 for b in config.optim.betas):
        raise ConfigError(f"optim.betas: must be at least 0 and below 1, got {list(config.optim.betas)}")
