# SPDX-License-Identifier: Apache-2.0
"""What a variational autoencoder says about its latents, and the images that come back."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Posterior:
    """A normal distribution with its own mean and variance for each element of a latent.

    Attributes:
        mean: [B, C, h, w].
        logvar: [B, C, h, w], limited to [-30, 20].
    """

    def __init__(self, moments: Tensor) -> None:
        """Take mean and log-variance from ``moments`` [B, 2 C, h, w]."""
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    @property
    def std(self) -> Tensor:
        """Standard deviation."""
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        """Variance."""
        return torch.exp(self.logvar)

    @property
    def latent_dist(self) -> "Posterior":
        """Itself: what diffusers calls it in the result of ``encode``."""
        return self

    def sample(self, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> Tensor:
        """Draw a latent of each image, from ``generator`` or from one for each; bits are those of diffusers.

        Raises:
            ValueError: another number of generators.
        """
        mean = self.mean
        if isinstance(generator, Sequence):
            if len(generator) not in (1, len(mean)):
                raise ValueError(f"sample: needs {len(mean)} generators, one an image, got {len(generator)}")
            noise = [_normal(part, g) for part, g in zip(mean.chunk(len(generator)), generator, strict=True)]
            return mean + self.std * torch.cat(noise)
        return mean + self.std * _normal(mean, generator)

    def mode(self) -> Tensor:
        """The most likely latent: the mean."""
        return self.mean

    def kl(self, other: "Posterior | None" = None) -> Tensor:
        """Kullback-Leibler divergence to the standard normal, or to ``other``: [B], summed, in float32."""
        mean, logvar = self.mean.float(), self.logvar.float()
        if self.mean.dtype == torch.float64:
            mean, logvar = self.mean, self.logvar
        if other is None:
            return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).sum((1, 2, 3))
        difference = (mean - other.mean).square() / other.var
        return 0.5 * (difference + (logvar - other.logvar).exp() - 1.0 - logvar + other.logvar).sum((1, 2, 3))

    def nll(self, sample: Tensor, dims: Sequence[int] = (1, 2, 3)) -> Tensor:
        """Negative log-likelihood of a latent, summed over ``dims``."""
        squares = (sample - self.mean).square() / self.var
        return 0.5 * (math.log(2.0 * math.pi) + self.logvar + squares).sum(tuple(dims))


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


class Decoded(Tensor):
    """A tensor of images that callers written for diffusers may also ask for ``.sample``."""

    # Results of ops on it are plain tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def of(x: Tensor) -> Tensor:
        """``x``, with ``.sample``; while torch.compile traces, ``x`` itself."""
        return x if torch.compiler.is_compiling() else x.as_subclass(Decoded)

    @property
    def sample(self) -> Tensor:
        """The images as a plain tensor."""
        return self.as_subclass(Tensor)
