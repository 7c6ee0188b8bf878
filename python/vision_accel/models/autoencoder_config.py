# SPDX-License-Identifier: Apache-2.0
"""Options of AutoencoderKL, and its known variants. Names and presets are those of diffusers."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from vision_accel._options import check_fields, check_names

# By diffusers' names.
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu", "mish": "mish"}


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """Options of :class:`AutoencoderKL`, named and preset as in diffusers.

    Attributes:
        in_channels: of the images that are encoded.
        out_channels: of the images that are decoded.
        block_out_channels: width at each resolution, from the finest; each but the last halves the size.
        layers_per_block: residual blocks at each resolution of the encoder; the decoder has one more.
        latent_channels: of a latent.
        norm_num_groups: groups of every norm; divides all widths.
        act_fn: of the residual blocks: silu (also called swish), gelu, relu or mish.
        mid_block_add_attention: attention in the middle of encoder and decoder.
        use_quant_conv: a 1 x 1 convolution behind the encoder.
        use_post_quant_conv: a 1 x 1 convolution in front of the decoder.
        scaling_factor: what a diffusion model sees is ``(latent - shift_factor) * scaling_factor``.
        shift_factor: None: 0.
        sample_size: height and width that it was trained at, one number where they are equal.
        latents_mean: carried for others.
        latents_std: carried for others.
        force_upcast: a note to diffusers that its own model overflows in float16; this one does not.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    act_fn: str = "silu"
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    sample_size: int | tuple[int, int] = 32
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True

    def __post_init__(self) -> None:
        check_fields("AutoencoderKL", self)
        positive = ("in_channels", "out_channels", "layers_per_block", "latent_channels", "norm_num_groups")
        wrong = [f"{n} must be positive, got {getattr(self, n)}" for n in positive if getattr(self, n) < 1]
        if self.act_fn not in ACTIVATIONS:
            wrong.append(f"act_fn must be {', '.join(ACTIVATIONS)}, got {self.act_fn!r}")
        if not self.block_out_channels:
            wrong.append("block_out_channels must not be empty")
        if self.scaling_factor == 0 or not math.isfinite(self.scaling_factor):
            wrong.append(f"scaling_factor must be finite and not 0, got {self.scaling_factor}")
        for width in self.block_out_channels:
            if width < 1 or width % max(1, self.norm_num_groups):
                wrong.append(f"norm_num_groups={self.norm_num_groups} must divide the width {width}")
        if wrong:
            raise ValueError("AutoencoderKL: " + "; ".join(wrong))

    @property
    def factor(self) -> int:
        """How many pixels of an image one pixel of a latent stands for, in each direction."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def image_size(self) -> tuple[int, int]:
        """``sample_size`` as height and width."""
        size = self.sample_size
        return (size, size) if isinstance(size, int) else size

    @classmethod
    def named(cls, name: str, **changes: Any) -> "AutoencoderKLConfig":
        """The config of a known variant, with some fields changed; an unknown name is a ValueError."""
        if name not in VARIANTS:
            raise ValueError(f"unknown model {name!r}; there are {', '.join(VARIANTS)}")
        return cls().replace(**{**VARIANTS[name], **changes})

    def replace(self, **changes: Any) -> "AutoencoderKLConfig":
        """A copy with some fields changed; an unknown field is a TypeError that names the nearest one."""
        check_names("AutoencoderKL", changes, [f.name for f in fields(self)])
        return replace(self, **changes)


_SD = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}
_16 = {
    **_SD,
    "latent_channels": 16,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "autoencoder_kl_sd": _SD,  # Rombach et al. 2021, kl-f8
    "autoencoder_kl_sdxl": {**_SD, "scaling_factor": 0.13025, "sample_size": 1024},  # arXiv:2307.01952
    "autoencoder_kl_sd3": {**_16, "scaling_factor": 1.5305, "shift_factor": 0.0609},  # arXiv:2403.03206
    "autoencoder_kl_flux": {**_16, "scaling_factor": 0.3611, "shift_factor": 0.1159},  # FLUX.1
}
