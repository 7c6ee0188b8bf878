# SPDX-License-Identifier: Apache-2.0
"""Image classification: cross-entropy on labels, soft ones with mixup and CutMix; top-1 and top-5."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset

import vision_accel as va
from vision_accel import ops
from vision_accel.data.folder import open_images
from vision_accel.data.loader import Batch, Sample, TrainImages, collate_train
from vision_accel.data.mix import mix
from vision_accel.data.preprocess import Preprocess
from vision_accel.train.config import Config
from vision_accel.train.distributed import World
from vision_accel.train.errors import ConfigError
from vision_accel.train.evaluate import evaluate_folder
from vision_accel.train.tasks import eval_options, start_model

_log = logging.getLogger(__name__)


class Classify:
    """Train a ViT on a folder of images per class.

    Raises:
        ConfigError: an option does not fit the model or the data.
        DataError: a folder cannot be used.
    """

    best = "eval_top1"

    def __init__(self, config: Config, world: World) -> None:
        if not config.data.train:
            raise ConfigError("data.train: name a folder with one folder of images per class, or tars")
        self.config, self.world = config, world
        self.source = open_images(config.data.train, block=config.data.shuffle_block)
        self.val = open_images(config.data.val, self.source.classes) if config.data.val else None
        if len(self.source.classes) < 2:
            raise ConfigError(f"data.train: {self.source.root} has one class; there is nothing to tell apart")

    @property
    def samples(self) -> Dataset[Sample]:
        """Augmented images of the training folder; the model's preprocessing must be known by then."""
        transform = self.config.augment.transform(self.preprocess)
        return TrainImages(self.source, transform, self.config.train.seed)

    def collate(self, samples: list[Sample]) -> Batch:
        """Stack images and labels."""
        return collate_train(samples)

    def create_model(self) -> nn.Module:
        """A new model, or one from a checkpoint with its head and position embeddings made to fit."""
        options = self.config.model
        settings: dict[str, Any] = dict(options.overrides)
        settings.update(num_classes=len(self.source.classes))
        settings.update(drop_path_rate=options.drop_path, patch_drop_rate=options.patch_dropout)
        if options.img_size is not None:
            settings["img_size"] = options.img_size
        model = start_model(options, settings)
        if model.preprocess is None:
            h, w = model.config.img_size
            resize: Literal["shortest", "squash"] = "shortest" if h == w else "squash"  # hf has both
            model.preprocess = Preprocess(size=(h, w), resize=resize, crop_offset="floor")
        self.preprocess: Preprocess = model.preprocess
        model.labels = dict(enumerate(self.source.classes))
        if options.checkpoint_activations:
            model.set_grad_checkpointing()
        return cast(nn.Module, model)

    def loss(self, model: nn.Module, batch: dict[str, Tensor], rng: np.random.Generator) -> Tensor:
        """Cross-entropy with label smoothing, on mixed images where the options say so."""
        options = self.config.augment
        images, target = batch["image"], batch["label"]
        if options.mixup > 0 or options.cutmix > 0:
            images, target = mix(
                images,
                target,
                len(self.source.classes),
                rng,
                mixup=options.mixup,
                cutmix=options.cutmix,
                prob=options.mix_prob,
                switch_prob=options.mix_switch_prob,
            )
        return ops.cross_entropy(model(images), target, label_smoothing=options.label_smoothing)

    def evaluate(self, model: nn.Module, interrupted: Callable[[], bool]) -> dict[str, Any] | None:
        """Loss, top-1 and top-5 on the validation folder."""
        if self.val is None:
            return None
        options = eval_options(self.config)
        result = evaluate_folder(model, self.val, self.preprocess, self.world, options, interrupted)
        if result is None:
            return None
        if result.bad and self.world.leads:
            first = result.bad[0]
            _log.warning("%s: %d images cannot be read, first %s", self.val.root, len(result.bad), first.file)
        return {"eval_loss": result.loss, "eval_top1": result.top1, "eval_top5": result.top5}

    def export(self, model: nn.Module, directory: Path) -> None:
        """Save for ``va.load``: in Hugging Face layout, or in timm's if that one cannot express the model."""
        try:
            va.save(model, directory, layout="hf")
        except ValueError as e:
            _log.warning("%s: saved in timm's layout, because %s", directory.name, e)
            va.save(model, directory, layout="timm")
