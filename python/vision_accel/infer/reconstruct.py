# SPDX-License-Identifier: Apache-2.0
"""Pictures through an autoencoder: reconstructions, latents in files, and ways between latents."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor

from vision_accel.data.images import ImageError, load_image
from vision_accel.infer._images import Images, OnError, expand
from vision_accel.infer._model import evaluating
from vision_accel.io.tensors import read_safetensors


@dataclass
class Reconstruction:
    """One picture and what the autoencoder makes of it; ``error`` says why there is none."""

    source: str
    image: Image.Image | None = None
    """What went in, after padding was cut off."""
    output: Image.Image | None = None
    """What came out, of the same size."""
    psnr: float | None = None
    """Peak signal-to-noise ratio of the two in dB, on 8-bit pixels; infinity if they are equal."""
    error: str | None = None


def reconstruct(
    vae: Any, images: Images, *, batch_size: int = 1, on_error: OnError = "raise"
) -> Iterator[Reconstruction]:
    """Encode and decode every picture at its own size.

    Sizes that the model's factor does not divide are padded by their edge and cropped back. The latents are
    the means of the posteriors, so that the result is the same every time.

    Args:
        vae: an AutoencoderKL.
        images: as for ``classify``; grey where the model takes one channel.
        batch_size: neighbouring pictures of one size that pass together; changes speed and
            memory, not results.
        on_error: ``"raise"`` the first bad picture's ImageError, or ``"skip"``: its result has the error.

    Yields:
        One result for each picture, in order.

    Raises:
        ValueError: the model takes or makes other than 1 or 3 channels, or not the same.
    """
    takes, makes = vae.config.in_channels, vae.config.out_channels
    if takes != makes:
        raise ValueError(f"reconstruct: the autoencoder takes {takes} channels and makes {makes}")
    if batch_size < 1:
        raise ValueError(f"batch_size: must be at least 1, got {batch_size}")
    waiting: list[tuple[str, np.ndarray[Any, Any]]] = []
    for name, picture in expand(images):
        try:
            pixels = _load(vae, picture)
        except ImageError as e:
            if on_error == "raise":
                raise
            yield from _pass(vae, waiting)
            waiting = []
            yield Reconstruction(name, error=str(e))
            continue
        if waiting and (len(waiting) == batch_size or waiting[0][1].shape != pixels.shape):
            yield from _pass(vae, waiting)
            waiting = []
        waiting.append((name, pixels))
    yield from _pass(vae, waiting)


def encode(vae: Any, images: Images) -> Iterator[tuple[str, Tensor]]:
    """Names and latents [C, h, w] (posterior means, not scaled) of pictures, one at a time."""
    for name, picture in expand(images):
        pixels = _load(vae, picture)
        with evaluating(vae):
            latent = vae.encode(_padded(vae, _to_input(vae, [pixels]))).mode()[0]
        yield name, latent.float().cpu().contiguous().clone()


def decode(vae: Any, latents: Tensor) -> list[Image.Image]:
    """Pictures of latents [B, C, h, w] that are not scaled."""
    with evaluating(vae):
        weight = next(vae.parameters())
        y = vae.decode(latents.to(weight.device, weight.dtype), return_dict=False)[0]
        return [_to_picture(p) for p in _to_pixels(y)]


def save_latents(vae: Any, images: Images, file: str | os.PathLike[str]) -> int:
    """Write the latents of pictures into a safetensors file, by the pictures' names; returns how many."""
    found = dict(encode(vae, images))
    info = {
        "scaling_factor": str(vae.config.scaling_factor),
        "shift_factor": str(vae.config.shift_factor or 0.0),
    }
    save_file(found, os.fspath(file), metadata={"format": "pt", **info})
    return len(found)


def load_latents(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """What :func:`save_latents` wrote: name -> [C, h, w].

    Raises:
        FileNotFoundError: no such file.
        ValueError: no whole file of safetensors, or a latent in it is NaN or infinite.
    """
    latents = read_safetensors(Path(file))
    for name, z in latents.items():
        if not z.isfinite().all():
            raise ValueError(f"{os.fspath(file)}: the latent {name!r} is not finite")
    return latents


def interpolate(vae: Any, a: Tensor, b: Tensor, steps: int = 8) -> list[Image.Image]:
    """Pictures on the way from one latent [C, h, w] to another, both included.

    Source: spherical interpolation, Shoemake 1985; the straight line where the two point the same way.
    """
    if a.shape != b.shape or steps < 2:
        shapes = f"{list(a.shape)} and {list(b.shape)}"
        raise ValueError(
            f"interpolate: needs latents of one shape and 2 steps or more, got {shapes}, {steps} steps"
        )
    x, y = a.flatten().double(), b.flatten().double()
    angle = torch.acos((x @ y / (x.norm() * y.norm()).clamp(min=1e-12)).clamp(-1, 1))
    between = []
    for t in np.linspace(0, 1, steps):
        if angle.sin() < 1e-4:
            mixed = (1 - t) * x + t * y
        else:
            mixed = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)
        between.append(mixed.view(a.shape).to(a.dtype))
    return [decode(vae, z[None])[0] for z in between]


def sample(
    vae: Any, count: int = 16, size: tuple[int, int] | None = None, seed: int = 0
) -> Iterator[Image.Image]:
    """Pictures of latents drawn from the normal distribution that diffusion models start from.

    They show what the decoder makes of it, not pictures of things: those need a diffusion model.

    Args:
        vae: an AutoencoderKL.
        count: how many.
        size: (height, width) in pixels, multiples of the model's factor; None for that of its training.
        seed: of the draws; the i-th picture does not depend on ``count``.
    """
    factor = vae.config.factor
    height, width = size or vae.config.image_size
    if count < 1 or min(height, width) < 1 or height % factor or width % factor:
        raise ValueError(
            f"sample: needs 1 picture or more of sides that {factor} divides, got {count} of {height}x{width}"
        )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        z = torch.randn(1, vae.config.latent_channels, height // factor, width // factor, generator=generator)
        yield decode(vae, vae.unscale_latents(z))[0]


def draw_row(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side, 8 in a row; the first one's size for all."""
    if not pictures:
        raise ValueError("draw_row: no pictures to draw")
    w, h = pictures[0].size
    gap, columns = 4, min(8, len(pictures))
    page = Image.new("RGB", (columns * (w + gap), -(-len(pictures) // columns) * (h + gap)), "white")
    for i, picture in enumerate(pictures):
        page.paste(picture.resize((w, h)), (i % columns * (w + gap), i // columns * (h + gap)))
    return page


def draw_pairs(found: Sequence[Reconstruction], columns: int = 4) -> Image.Image:
    """Pictures above their reconstructions, with their PSNR; the first one's size for all."""
    pairs = [(r.image, r.output, r.psnr) for r in found if r.image is not None and r.output is not None]
    if not pairs:
        raise ValueError("draw_pairs: no reconstructions to draw")
    w, h = pairs[0][0].size
    gap, text = 4, 14
    rows = -(-len(pairs) // columns)
    page = Image.new("RGB", (min(columns, len(pairs)) * (w + gap), rows * (2 * h + text + gap)), "white")
    draw = ImageDraw.Draw(page)
    for i, (image, output, value) in enumerate(pairs):
        x, y = i % columns * (w + gap), i // columns * (2 * h + text + gap)
        page.paste(image.resize((w, h)), (x, y))
        page.paste(output.resize((w, h)), (x, y + h))
        draw.text((x + 2, y + 2 * h + 1), f"{value:.1f} dB", fill="black")
    return page


def _pass(vae: Any, named: list[tuple[str, np.ndarray[Any, Any]]]) -> Iterator[Reconstruction]:
    if not named:
        return
    with evaluating(vae):
        outputs = _to_pixels(vae(_to_input(vae, [p for _, p in named]), return_dict=False)[0])
    for (name, pixels), output in zip(named, outputs, strict=True):
        error = float(np.mean((pixels.astype(np.float64) - output) ** 2))
        value = float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))
        yield Reconstruction(name, _to_picture(pixels), _to_picture(output), value)


def _load(vae: Any, picture: Any) -> np.ndarray[Any, Any]:
    """[h, w, 1 | 3] uint8, as many channels as the model takes."""
    channels = vae.config.in_channels
    if channels not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels, but the autoencoder takes {channels}")
    pixels = load_image(picture)
    return pixels if channels == 3 else np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


def _to_picture(pixels: np.ndarray[Any, Any]) -> Image.Image:
    return Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])


def _to_input(vae: Any, images: list[np.ndarray[Any, Any]]) -> Tensor:
    """[B, C, h, w] in [-1, 1] on the model's device and in its dtype."""
    weight = next(vae.parameters())
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(torch.float32)
    return (x / 127.5 - 1).to(weight.device, weight.dtype)


def _padded(vae: Any, x: Tensor) -> Tensor:
    below, right = (-n % vae.config.factor for n in x.shape[2:])
    return torch.nn.functional.pad(x, (0, right, 0, below), "replicate") if below or right else x


def _to_pixels(y: Tensor) -> np.ndarray[Any, Any]:
    if y.shape[1] not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels, but the autoencoder makes {y.shape[1]}")
    if not y.isfinite().all():
        raise ValueError("the autoencoder made NaN or infinity: of its weights, or of latents")
    pixels = ((y.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
