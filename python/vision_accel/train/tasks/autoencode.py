# SPDX-License-Identifier: Apache-2.0
"""AutoencoderKL on a folder of images: L1 or L2, KL, LPIPS, and a PatchGAN discriminator."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import Dataset

import vision_accel as va
from vision_accel.data.folder import open_images
from vision_accel.data.loader import Batch, EvalImages, Sample, TrainImages, collate_train
from vision_accel.data.preprocess import Preprocess
from vision_accel.train.autoencode_options import AutoencodeOptions
from vision_accel.train.config import Config
from vision_accel.train.discriminator import PatchDiscriminator, discriminator_loss, load_lpips, psnr, ssim
from vision_accel.train.distributed import World
from vision_accel.train.errors import ConfigError
from vision_accel.train.evaluate import evaluation_pass
from vision_accel.train.tasks import eval_options, start_model

_log = logging.getLogger(__name__)
_SHOWN = 8  # images in reconstructions.png


class Adversaries(nn.Module):
    """The autoencoder and its discriminator, trained together: images [B, 3, h, w] in [-1, 1] -> the loss.

    One backward pass serves both, and none learns from the other's loss: the reconstruction is judged by a
    copy of the discriminator whose weights are constants, and the discriminator sees a detached copy of it.

    Attributes:
        vae: the autoencoder.
        discriminator: None where it has no weight.
        batches: micro-batches so far.
    """

    batches: Tensor

    def __init__(self, vae: Any, options: AutoencodeOptions, batches_per_step: int) -> None:
        super().__init__()
        self.vae, self.options, self.batches_per_step = vae, options, batches_per_step
        used = options.disc_weight > 0
        self.discriminator = PatchDiscriminator(vae.config.out_channels) if used else None
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        # In a list, so that it is not part of the state that is saved and trained.
        self.lpips = [load_lpips(options.perceptual_weights)] if options.perceptual_weights else []
        if options.decoder_only:
            for part in (vae.encoder, vae.quant_conv):
                if part is not None:
                    part.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """The loss of a micro-batch."""
        o = self.options
        posterior = self.vae.encode(images)
        fake = self.vae.decode(posterior.sample(), return_dict=False)[0]
        difference = fake.float() - images.float()
        loss = difference.abs().mean() if o.rec_loss == "l1" else difference.square().mean()
        for lpips in self.lpips:
            judge = lpips.to(images.device)
            loss = loss + o.perceptual_weight * judge(fake.float(), images.float()).mean()
        if not o.decoder_only:
            # Per element of the image, like the other terms.
            loss = loss + o.kl_weight * posterior.kl().mean() / images[0].numel()
        if self.discriminator is not None:
            started = int(self.batches) // self.batches_per_step >= o.disc_start
            self.batches += 1
            return loss + self._adversarial(self.discriminator, images, fake, loss, started)
        return loss

    def _adversarial(
        self, judge: nn.Module, images: Tensor, fake: Tensor, loss: Tensor, started: bool
    ) -> Tensor:
        if not started:  # every parameter has a gradient in every step, as DistributedDataParallel wants it
            return sum((p.sum() * 0.0 for p in judge.parameters()), loss.new_zeros(()))
        frozen = {k: v.detach().clone() for k, v in judge.state_dict().items()}
        against = -functional_call(judge, frozen, (fake,)).mean()
        weight = self.options.disc_weight
        if self.options.disc_adaptive:
            last = self.vae.decoder.conv_out.weight
            own, its = (torch.autograd.grad(t, last, retain_graph=True)[0].norm() for t in (loss, against))
            weight = weight * (own / (its + 1e-4)).clamp(0, 1e4).detach()
        both = judge(torch.cat([images, fake.detach()]))
        real_logits, fake_logits = both.float().chunk(2)
        return weight * against + discriminator_loss(real_logits, fake_logits, self.options.disc_loss)


class Autoencode:
    """Train an AutoencoderKL on the images below a folder.

    Raises:
        ConfigError: an option does not fit the model or the data.
        DataError: a folder cannot be used.
    """

    best = "eval_psnr"

    def __init__(self, config: Config, world: World) -> None:
        if not config.data.train:
            raise ConfigError("data.train: name a folder of images")
        o = config.autoencode
        if o.perceptual_weights and not Path(o.perceptual_weights).is_file():
            raise ConfigError(f"autoencode.perceptual_weights: no such file: {o.perceptual_weights}")
        if o.perceptual_weight > 0 and not o.perceptual_weights and world.rank == 0:
            _log.warning("autoencode.perceptual_weights: not given, so that the loss has no LPIPS")
        self.config, self.world = config, world
        self.source = open_images(config.data.train, labelled=False, block=config.data.shuffle_block)
        self.val = open_images(config.data.val, labelled=False) if config.data.val else None

    @property
    def samples(self) -> Dataset[Sample]:
        """Augmented images; the size must be known by then."""
        transform = self.config.augment.transform(self.preprocess)
        return TrainImages(self.source, transform, self.config.train.seed)

    def collate(self, samples: list[Sample]) -> Batch:
        """Stack images."""
        return collate_train(samples)

    def create_model(self) -> nn.Module:
        """A new autoencoder or one of a checkpoint, and a new discriminator."""
        options = self.config.model
        settings: dict[str, Any] = dict(options.overrides)
        widths = settings.get("block_out_channels")
        if isinstance(widths, str):
            try:
                settings["block_out_channels"] = tuple(int(w) for w in widths.split(","))
            except ValueError:
                raise ConfigError(
                    f"model.overrides: block_out_channels must be numbers with commas, got {widths!r}"
                ) from None
        vae = start_model(options, settings)
        if not isinstance(vae, va.AutoencoderKL):
            raise ConfigError(f"model.name: {options.name} is a {type(vae).__name__}, not an AutoencoderKL")
        channels = vae.config.in_channels, vae.config.out_channels
        if channels != (3, 3):
            raise ConfigError(f"model: images have 3 channels, the autoencoder takes and makes {channels}")
        factor = vae.config.factor
        size = options.img_size or 256
        height, width = (size, size) if isinstance(size, int) else size
        if height % factor or width % factor:
            raise ConfigError(f"model.img_size: must be a multiple of {factor}, got {height} x {width}")
        if self.config.autoencode.disc_weight > 0 and min(height, width) < 32:
            raise ConfigError("model.img_size: the discriminator needs images of at least 32 x 32")
        self.preprocess = Preprocess(size=(height, width), crop_offset="floor")
        if options.checkpoint_activations:
            vae.set_grad_checkpointing()
        return Adversaries(vae, self.config.autoencode, self.config.train.accumulate)

    def loss(self, model: nn.Module, batch: dict[str, Tensor], rng: np.random.Generator) -> Tensor:
        """Loss of the autoencoder and of the discriminator."""
        loss: Tensor = model(batch["image"])
        return loss

    def evaluate(self, model: nn.Module, interrupted: Callable[[], bool]) -> dict[str, Any] | None:
        """PSNR and SSIM of reconstructions of the validation images; draws some beside the curves."""
        if self.val is None:
            return None
        world = self.world
        vae: Any = model.vae
        sums = torch.zeros(4, dtype=torch.float64)  # images, PSNR, SSIM, absolute error
        shown: list[Tensor] = []

        def score(batch: dict[str, Tensor]) -> None:
            images = batch["image"]
            fake = vae(images, return_dict=False)[0]
            pairs = [((t.float() + 1) / 2).clamp(0, 1) for t in (images, fake)]
            error = (pairs[0] - pairs[1]).abs().mean((1, 2, 3))
            scores = [s.sum().double().cpu() for s in (psnr(*pairs), ssim(*pairs), error)]
            sums.add_(torch.stack([sums.new_tensor(len(images)), *scores]))
            if len(shown) < _SHOWN:
                shown.extend(torch.cat(p, 1).cpu() for p in zip(*pairs, strict=True))

        samples = EvalImages(self.val, self.preprocess)
        if evaluation_pass(vae, samples, score, world, eval_options(self.config), interrupted) is None:
            return None
        if world.leads and shown:
            self._draw(shown[:_SHOWN])
        count, *totals = world.sum(sums.tolist())
        names = ("eval_psnr", "eval_ssim", "eval_l1")
        return dict(zip(names, (t / count for t in totals), strict=True))

    def _draw(self, pairs: list[Tensor]) -> None:
        """Images above their reconstructions, in the run directory."""
        pixels = (torch.cat(pairs, 2).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        file = Path(self.config.train.out) / "reconstructions.png"
        aside = file.with_suffix(".png.tmp")
        Image.fromarray(pixels).save(aside, format="png")
        aside.replace(file)

    def export(self, model: nn.Module, directory: Path) -> None:
        """Save the autoencoder for ``va.load``, in diffusers' layout."""
        vae: Any = model.vae
        va.save(vae, directory)
