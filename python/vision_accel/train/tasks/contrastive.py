# SPDX-License-Identifier: Apache-2.0
"""Contrastive training of CLIP and SigLIP on captioned pictures; retrieval and zero-shot accuracy."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import vision_accel as va
from vision_accel.data.captions import open_captions
from vision_accel.data.folder import open_images
from vision_accel.data.loader import Batch, EvalImages, Sample, TrainImages, collate_train
from vision_accel.data.source import SampleError, Source
from vision_accel.data.tokenizer import Tokenizer
from vision_accel.models.zero_shot import ZeroShot
from vision_accel.train.config import Config
from vision_accel.train.contrastive_loss import contrastive_loss
from vision_accel.train.distributed import World
from vision_accel.train.errors import ConfigError
from vision_accel.train.evaluate import evaluate_folder, evaluation_pass
from vision_accel.train.tasks import eval_options, start_model

_log = logging.getLogger(__name__)


class TokenIds:
    """The target of an image: the ids of one of its captions, of the first one where nothing is random."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, source: Source, index: int, rng: np.random.Generator | None) -> dict[str, Tensor]:
        """Ids [context_length]."""
        captions = source.captions(index)
        if not captions:
            raise SampleError("no caption")
        caption = captions[0 if rng is None else int(rng.integers(len(captions)))]
        return {"text": torch.from_numpy(self.tokenizer.array(caption)[0])}


class Contrastive:
    """Train a CLIP (softmax loss) or a SigLIP (sigmoid loss) on captioned pictures.

    Raises:
        ConfigError: an option does not fit the model or the data.
        DataError: the data cannot be used.
    """

    def __init__(self, config: Config, world: World) -> None:
        data, options = config.data, config.contrastive
        if not data.train:
            raise ConfigError("data.train: name captioned pictures: a folder, .csv, .tsv or .tar")
        if options.vocab_size and config.model.init_from:
            raise ConfigError("contrastive.vocab_size: the model of model.init_from has a vocabulary already")
        self.config, self.world = config, world
        columns = (options.image_column, options.caption_column)
        self.source = open_captions(data.train, *columns, block=data.shuffle_block)
        self.val = open_captions(data.val, *columns) if data.val else None
        self.folder = open_images(options.zero_shot) if options.zero_shot else None
        self.best = "eval_mean_recall" if self.val is not None else "eval_zero_shot_top1"

    @property
    def samples(self) -> Dataset[Sample]:
        """Augmented pictures and token ids."""
        transform = self.config.augment.transform(self.model.preprocess)
        target = TokenIds(self.model.tokenizer)
        return TrainImages(self.source, transform, self.config.train.seed, target)

    def collate(self, samples: list[Sample]) -> Batch:
        """Stack pictures and ids."""
        return collate_train(samples)

    def create_model(self) -> nn.Module:
        """A new model, or one from a checkpoint; towers are locked as the options say."""
        options, own = self.config.model, self.config.contrastive
        settings: dict[str, Any] = dict(options.overrides)
        settings |= {"drop_path_rate": options.drop_path, "patch_drop_rate": options.patch_dropout}
        if options.img_size is not None:
            settings["img_size"] = options.img_size
        model = start_model(options, settings, self._with_vocabulary if own.vocab_size else va.create_model)
        if not isinstance(model, va.CLIP):
            raise ConfigError(f"model: expected a CLIP, got a {type(model).__name__}")
        if model.preprocess is None:
            raise ConfigError("model: the checkpoint does not say how pictures are prepared")
        try:
            _ = model.tokenizer
        except (OSError, ValueError) as e:
            raise ConfigError(f"model: {e}; contrastive.vocab_size learns a vocabulary") from e
        if own.lock_image:
            model.lock_image_tower(own.unlocked_image_groups)
        if own.lock_text:
            model.lock_text_tower(own.unlocked_text_layers)
        if options.checkpoint_activations:
            model.set_grad_checkpointing()
        self.model = model
        return cast(nn.Module, model)

    def _with_vocabulary(self, name: str, **settings: Any) -> Any:
        """A new model whose tokenizer learns its vocabulary from the captions."""
        texts = (c for i in range(len(self.source)) for c in self.source.captions(i))
        length = int(settings.get("context_length", settings.get("text.context_length", 0)))
        tokenizer = Tokenizer.train(texts, self.config.contrastive.vocab_size, length or 77)
        model: Any = va.create_model(name, **settings | {"text.vocab_size": tokenizer.vocab_size})
        tokenizer.context_length = model.config.text.context_length
        model.tokenizer = tokenizer
        return model

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Embeddings of pictures and of texts, the logit scale, and the bias of a SigLIP."""
        if model.training:
            self.model.clamp_logit_scale()  # between 1 and 100
        return model(batch["image"], batch["text"])

    def joined_loss(self, outputs: Sequence[Tensor]) -> Tensor:
        """Loss of ``outputs``, of one micro-batch or of several joined."""
        return contrastive_loss(*outputs)

    def loss(self, model: nn.Module, batch: dict[str, Tensor], rng: np.random.Generator) -> Tensor:
        """Contrastive loss of a batch over all processes."""
        return self.joined_loss(self.outputs(model, batch))

    def evaluate(self, model: nn.Module, interrupted: Callable[[], bool]) -> dict[str, Any] | None:
        """Recall at 1, 5 and 10 both ways, and zero-shot accuracy, on what there is to evaluate on."""
        metrics: dict[str, Any] = {}
        if self.val is not None:
            found = self._retrieval(model, self.val, interrupted)
            if found is None:
                return None
            metrics |= found
        if self.folder is not None:
            names = [name.replace("_", " ") for name in self.folder.classes]
            templates = self.config.contrastive.templates
            classifier = ZeroShot(cast(va.CLIP, model), self.folder.classes, templates, names=names)
            transform, options = self.model.preprocess, eval_options(self.config)
            result = evaluate_folder(classifier, self.folder, transform, self.world, options, interrupted)
            if result is None:
                return None
            metrics |= {"eval_zero_shot_top1": result.top1, "eval_zero_shot_top5": result.top5}
        return metrics or None

    def _retrieval(
        self, model: nn.Module, captions: Source, interrupted: Callable[[], bool]
    ) -> dict[str, float] | None:
        pairs: list[tuple[Tensor, Tensor]] = []

        def embed(batch: dict[str, Tensor]) -> None:
            image, text, *_ = self.outputs(model, batch)
            pairs.append((image.float().cpu(), text.float().cpu()))

        samples = EvalImages(captions, self.model.preprocess, TokenIds(self.model.tokenizer))
        options = eval_options(self.config)
        if evaluation_pass(model, samples, embed, self.world, options, interrupted) is None:
            return None
        images, texts = zip(*self.world.gather(pairs), strict=True)
        return retrieval(torch.cat(images).to(self.world.device), torch.cat(texts).to(self.world.device))

    def export(self, model: nn.Module, directory: Path) -> None:
        """Save for ``va.load``: in Hugging Face layout, or in open_clip's if that one cannot express it."""
        cast(va.CLIP, model).clamp_logit_scale()
        model.tokenizer = self.model.tokenizer  # a moving average does not carry it
        try:
            va.save(model, directory, layout="hf")
        except ValueError as e:
            _log.warning("%s: saved in open_clip's layout, because %s", directory.name, e)
            va.save(model, directory, layout="open_clip")


def retrieval(images: Tensor, texts: Tensor, chunk: int = 1024) -> dict[str, float]:
    """Recall at 1, 5 and 10 of pairs of embeddings [n, E]: the share whose other half is among the k best.

    Equal similarities (the same caption twice) count in favour.
    """
    metrics = {}
    for name, a, b in (("image_to_text", images, texts), ("text_to_image", texts, images)):
        own = (a * b).sum(1)
        better = torch.cat(
            [
                ((rows @ b.T) > own[i : i + chunk, None] + 1e-6).sum(1)
                for i, rows in zip(range(0, len(a), chunk), a.split(chunk), strict=True)
            ]
        )
        for k in (1, 5, 10):
            metrics[f"eval_{name}_r{k}"] = (better < k).double().mean().item()
    metrics["eval_mean_recall"] = sum(metrics.values()) / len(metrics)
    return metrics
