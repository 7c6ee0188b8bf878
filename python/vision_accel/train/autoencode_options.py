# SPDX-License-Identifier: Apache-2.0
"""Options of the task autoencode."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class AutoencodeOptions:
    """What an autoencoder is trained to do (task autoencode)."""

    rec_loss: Literal["l1", "l2"] = "l1"
    """Absolute or squared difference of the pixels."""
    kl_weight: float = 1e-6
    """Of the KL divergence of the latents, summed, for each element of the image."""
    perceptual_weight: float = 1.0
    """Of LPIPS, where its weights are given."""
    perceptual_weights: str = ""
    """State dict of lpips.LPIPS(net="vgg"); without it, the loss has no LPIPS."""
    disc_weight: float = 0.0
    """Of the PatchGAN discriminator; 0 trains without one, 0.5 is usual."""
    disc_loss: Literal["hinge", "vanilla"] = "hinge"
    """Loss of the discriminator."""
    disc_start: int = 50001
    """Step from which on the discriminator takes part."""
    disc_adaptive: bool = True
    """Scale its weight so that its gradient is as large as that of the other terms."""
    decoder_only: bool = False
    """Leave the encoder as it is."""
