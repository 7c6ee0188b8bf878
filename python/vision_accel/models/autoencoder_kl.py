# SPDX-License-Identifier: Apache-2.0
"""AutoencoderKL, the variational autoencoder of latent diffusion.

Source: Rombach et al. 2021, arXiv:2112.10752. Options, parameter names and numerics are those of diffusers'
``AutoencoderKL``, so its checkpoints load without a key map, and its pipelines take this model as their
``vae``. Images and latents are [B, C, h, w] at the border, channels-last inside.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vision_accel.io import Checkpoint
from vision_accel.models import striped
from vision_accel.models.autoencoder_config import ACTIVATIONS, AutoencoderKLConfig
from vision_accel.models.overflow import without_overflow
from vision_accel.models.posterior import Decoded, Posterior
from vision_accel.models.pretrained import Pretrained, fill
from vision_accel.models.tiling import blended, parse_memory, plan_for
from vision_accel.nn import Conv2d, DownBlock, GroupNorm, MidBlock, UpBlock
from vision_accel.nn.conv import convolve
from vision_accel.nn.resnet import of_stream, wide_dtype


class Encoder(nn.Module):
    """[B, h, w, in_channels] -> moments [B, h / factor, w / factor, 2 * latent_channels], not narrowed."""

    def __init__(self, c: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, last = c.block_out_channels, len(c.block_out_channels) - 1
        act = ACTIVATIONS[c.act_fn]
        self.conv_in = Conv2d(c.in_channels, widths[0], 3, pad=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(widths[max(i - 1, 0)], width, c.layers_per_block, c.norm_num_groups, i == last, act)
            for i, width in enumerate(widths)
        )
        self.mid_block = MidBlock(widths[-1], c.norm_num_groups, c.mid_block_add_attention, act)
        self.conv_norm_out = GroupNorm(c.norm_num_groups, widths[-1], activation="silu")
        self.conv_out = Conv2d(widths[-1], 2 * c.latent_channels, 3, pad=1)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Encode channels-last images."""
        x = convolve(self.conv_in, x, out_dtype=wide_dtype(x.dtype))
        for block in (*self.down_blocks, self.mid_block):
            x = _run(block, x, self.grad_checkpointing)
        return convolve(self.conv_out, self.conv_norm_out(x), out_dtype=x.dtype)


class Decoder(nn.Module):
    """[B, h, w, latent_channels] -> images [B, factor * h, factor * w, out_channels]."""

    def __init__(self, c: AutoencoderKLConfig) -> None:
        super().__init__()
        widths = c.block_out_channels[::-1]
        last, act = len(widths) - 1, ACTIVATIONS[c.act_fn]
        self.conv_in = Conv2d(c.latent_channels, widths[0], 3, pad=1)
        self.mid_block = MidBlock(widths[0], c.norm_num_groups, c.mid_block_add_attention, act)
        self.up_blocks = nn.ModuleList(
            UpBlock(widths[max(i - 1, 0)], width, c.layers_per_block + 1, c.norm_num_groups, i == last, act)
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = GroupNorm(c.norm_num_groups, widths[-1], activation="silu")
        self.conv_out = Conv2d(widths[-1], c.out_channels, 3, pad=1)
        self.grad_checkpointing = False

    def forward(self, z: Tensor) -> Tensor:
        """Decode channels-last latents."""
        x = convolve(self.conv_in, z, out_dtype=wide_dtype(z.dtype))
        for block in (self.mid_block, *self.up_blocks):
            x = _run(block, x, self.grad_checkpointing)
        return self.conv_out(self.conv_norm_out(x))


def _run(block: nn.Module, x: Tensor, checkpointed: bool) -> Tensor:
    if checkpointed and torch.is_grad_enabled():
        return checkpoint(block, x, use_reentrant=False)
    return block(x)


class AutoencoderKL(Pretrained, library_name="vision_accel", pipeline_tag="image-to-image"):
    """Images [B, 3, h, w] in [-1, 1] <-> latents [B, latent_channels, h / factor, w / factor].

    With 16-bit weights, and under ``torch.autocast``, only images, latents and what comes behind a
    normalisation are stored in float16; everything else, which it may not hold, is float32. Should
    weights be so extreme that float16 overflows all the same, see ``models.overflow``.

    Attributes:
        config: what it is built from.
    """

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        c = self.config = config
        self.tile: tuple[int, float] | None = None  # pixels of an image's side, and overlap
        self.max_memory: int | str | None = None
        self.slicing = False
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)
        two = 2 * c.latent_channels
        self.quant_conv = Conv2d(two, two, 1) if c.use_quant_conv else None
        self.post_quant_conv = (
            Conv2d(c.latent_channels, c.latent_channels, 1) if c.use_post_quant_conv else None
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, and of the images and latents that it takes."""
        return self.encoder.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.conv_in.weight.device

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: blocks are computed again in the backward pass."""
        self.encoder.grad_checkpointing = self.decoder.grad_checkpointing = enable

    def enable_tiling(
        self, tile_size: int | None = None, overlap: float = 0.25, *, max_memory: int | str = "2GB"
    ) -> None:
        """Make ``encode`` and ``decode`` take less memory from now on.

        Args:
            tile_size: side of overlapping tiles in pixels that are processed alone and faded into each other,
                as diffusers does it: norms then see one tile only, and colours may differ between tiles.
                None: exactly, within ``max_memory``.
            overlap: share of a tile that it has in common with the next.
            max_memory: where there is no tile size, as in :meth:`decode`.
        """
        if tile_size is None:
            parse_memory(max_memory)
            self.tile, self.max_memory = None, max_memory
            return
        if tile_size < 1 or tile_size % self.config.factor or not 0 <= overlap < 1:
            raise ValueError(
                f"AutoencoderKL: tiles must be multiples of {self.config.factor} pixels and overlap by"
                f" less than 1, got {tile_size} and {overlap}"
            )
        self.tile, self.max_memory = (tile_size, overlap), None

    def disable_tiling(self) -> None:
        """Process images whole again."""
        self.tile = self.max_memory = None

    def enable_slicing(self) -> None:
        """Process a batch one image at a time from now on, in less memory; results are the same."""
        self.slicing = True

    def disable_slicing(self) -> None:
        """Process batches whole again."""
        self.slicing = False

    def scale_latents(self, latents: Tensor) -> Tensor:
        """Latents of the encoder as a diffusion model sees them."""
        return (latents - (self.config.shift_factor or 0.0)) * self.config.scaling_factor

    def unscale_latents(self, latents: Tensor) -> Tensor:
        """What a diffusion model made, as the decoder takes it: undoes :meth:`scale_latents`."""
        return latents / self.config.scaling_factor + (self.config.shift_factor or 0.0)

    def encode(self, x: Tensor, return_dict: bool = True, *, max_memory: int | str | None = None) -> Any:
        """Images -> the posterior of their latents.

        Args:
            x: [B, in_channels, h, w] in [-1, 1]; h and w are multiples of ``config.factor``.
            return_dict: False for a tuple of the posterior, as diffusers has it.
            max_memory: see :meth:`decode`.

        Returns:
            A :class:`Posterior`; its ``latent_dist`` is itself, for callers written for diffusers.

        Raises:
            ValueError: not such images.
        """
        c = self.config
        if x.ndim != 4 or x.shape[1] != c.in_channels:
            raise ValueError(f"AutoencoderKL: x must be [B, {c.in_channels}, h, w], got {list(x.shape)}")
        if x.shape[2] % c.factor or x.shape[3] % c.factor or 0 in x.shape[2:]:
            raise ValueError(
                f"AutoencoderKL: height and width must be multiples of {c.factor}, got {x.shape[2]} x"
                f" {x.shape[3]}; forward() and va.reconstruct pad and crop back"
            )
        moments = without_overflow(self, "encoder", x, lambda: self._encoded(x, max_memory))
        posterior = Posterior(moments)
        return posterior if return_dict else (posterior,)

    def _encoded(self, x: Tensor, max_memory: int | str | None) -> Tensor:
        c = self.config
        if self.tile is not None and max(x.shape[2:]) > self.tile[0]:
            moments = blended(self._moments, x, *self.tile, 1 / c.factor, 2 * c.latent_channels)
        elif len(x) and (plan := self._plan(self.encoder, x.shape[2], x.shape[3], max_memory)):
            with torch.no_grad():
                images = x.permute(0, 2, 3, 1).contiguous().split(1)
                parts = [striped.encode(self.encoder, image, plan) for image in images]
                moments = self._quantised(torch.cat(parts)).permute(0, 3, 1, 2)
        else:
            moments = self._moments(x)
        return moments

    def _moments(self, x: Tensor) -> Tensor:
        if self.slicing and len(x) > 1:
            return torch.cat([self._moments(one) for one in x.split(1)])
        return self._quantised(self.encoder(x.permute(0, 2, 3, 1).contiguous())).permute(0, 3, 1, 2)

    def _quantised(self, moments: Tensor) -> Tensor:
        moments = moments if self.quant_conv is None else of_stream(self.quant_conv, moments)
        return moments.to(self.dtype)

    def _plan(
        self, part: nn.Module, height: int, width: int, max_memory: int | str | None
    ) -> striped.Plan | None:
        """How to process an image of that size within the memory that is allowed; None: whole."""
        limit = self.max_memory if max_memory is None else max_memory
        if limit is None:
            return None
        if not striped.can_cut(part):
            return None
        element = torch.empty((), dtype=wide_dtype(self.dtype)).element_size()
        return plan_for(self.config.block_out_channels, height, width, element, parse_memory(limit))

    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,
        generator: Any = None,
        *,
        max_memory: int | str | None = None,
    ) -> Any:
        """Latents -> images.

        Args:
            z: [B, latent_channels, h, w], not scaled (see :meth:`unscale_latents`).
            return_dict: False for a tuple of the images, as diffusers has it.
            generator: not used; diffusers' pipelines pass one.
            max_memory: bytes, or text such as ``"2GB"``, that activations may take beside the result. A
                larger image is processed in stripes, without gradients and with the same result but for
                rounding (differences below 1e-5 of its range); see ``models.striped``. Packed weights, and
                some 25 MB of the kernels and the allocator, are not counted. A model with hooks, or with
                modules that are not ours, is not cut.

        Returns:
            [B, out_channels, factor * h, factor * w], about in [-1, 1]. Its ``sample`` is itself, for callers
            written for diffusers.

        Raises:
            ValueError: not such latents, or too little memory; the message says what would do.
        """
        self._check_latent(z)
        x = without_overflow(self, "decoder", z, lambda: self._decoded(z, max_memory))
        return Decoded.of(x) if return_dict else (x,)

    def _decoded(self, z: Tensor, max_memory: int | str | None) -> Tensor:
        factor = self.config.factor
        if self.tile is not None and max(z.shape[2:]) * factor > self.tile[0]:
            tile, overlap = self.tile
            x = blended(self._images, z, tile // factor, overlap, factor, self.config.out_channels)
        elif len(z) and (
            plan := self._plan(self.decoder, z.shape[2] * factor, z.shape[3] * factor, max_memory)
        ):
            with torch.no_grad():
                parts = [striped.decode(self.decoder, one, plan) for one in self._enter(z).split(1)]
                x = torch.cat(parts).permute(0, 3, 1, 2)
        else:
            x = self._images(z)
        return x.to(self.dtype) if self.dtype == torch.float16 else x  # float32 behind what has overflowed

    def _images(self, z: Tensor) -> Tensor:
        if self.slicing and len(z) > 1:
            return torch.cat([self._images(one) for one in z.split(1)])
        images: Tensor = self.decoder(self._enter(z)).permute(0, 3, 1, 2)
        return images

    def _check_latent(self, z: Tensor) -> None:
        channels = self.config.latent_channels
        if z.ndim != 4 or z.shape[1] != channels or 0 in z.shape[2:]:
            raise ValueError(f"AutoencoderKL: z must be [B, {channels}, h, w], got {list(z.shape)}")

    def _enter(self, z: Tensor) -> Tensor:
        """Latents channels-last, through the post-quantisation convolution."""
        z = z.permute(0, 2, 3, 1).contiguous()
        conv = self.post_quant_conv
        return z if conv is None else convolve(conv, z, out_dtype=wide_dtype(z.dtype))

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Any:
        """Encode and decode; sizes that the factor does not divide are padded by their edge and cropped back.

        Args:
            sample: [B, in_channels, h, w] in [-1, 1].
            sample_posterior: draw the latents instead of taking their mean.
            return_dict: False for a tuple of the images.
            generator: of the draw, or one for each image.
        """
        if sample.ndim != 4:
            shape = list(sample.shape)
            raise ValueError(f"AutoencoderKL: x must be [B, {self.config.in_channels}, h, w], got {shape}")
        h, w = sample.shape[2:]
        below, right = -h % self.config.factor, -w % self.config.factor
        if below or right:
            sample = nn.functional.pad(sample, (0, right, 0, below), "replicate")
        posterior = self.encode(sample)
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        x = self.decode(z, return_dict=False)[0][:, :, :h, :w]
        return Decoded.of(x) if return_dict else (x,)

    # Checkpoints.

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, **overrides: Any) -> "AutoencoderKL":
        """Build the model that a checkpoint describes, with some config fields changed."""
        with torch.device("meta"):
            model = cls(AutoencoderKLConfig().replace(**{**checkpoint.config, **overrides}))
        fill(model, checkpoint.tensors, ())
        return model

    def to_checkpoint(self, layout: str) -> Checkpoint:
        """Describe this model for a layout, ``diffusers`` (also called ``hf``) or ``ldm``."""
        config = {f.name: getattr(self.config, f.name) for f in fields(self.config)}
        layout = "diffusers" if layout == "hf" else layout
        return Checkpoint("autoencoderkl", layout, config, self.state_dict())
