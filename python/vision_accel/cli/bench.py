# SPDX-License-Identifier: Apache-2.0
"""``vision-accel bench``: throughput of one model here, in the columns of timm's benchmark.py."""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

import vision_accel as va
from vision_accel.cli._images import Placed
from vision_accel.cli._options import parse

if TYPE_CHECKING:
    import torch


@dataclass
class Bench(Placed):
    """Measure images and texts per second of a model on random input; ``bench data`` measures the loaders.

    ``python -m bench`` of a source checkout compares with other engines in the same run.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")] = tyro.MISSING
    """Model name (vit_base_patch16_224, ViT-B-32, autoencoder_kl_sd), directory or hub id."""
    batch_size: str = "1,8"
    """Images per pass; several with commas."""
    img_size: int | None = None
    """Height and width of the images of an AutoencoderKL (None: those it was made for)."""
    threads: int | None = None
    """Threads to use (None: one per core)."""
    seconds: float = 5.0
    """Time to measure at each batch size."""
    json: FlagCreatePairsOff[bool] = False
    """Print JSON."""


COLUMNS = (
    ("model", ""),
    ("infer_samples_per_sec", ".2f"),
    ("infer_step_time", ".3f"),  # ms, median
    ("infer_step_time_min", ".3f"),
    ("infer_batch_size", ""),
    ("infer_img_size", ""),
    ("infer_gmacs", ".2f"),
    ("param_count", ".2f"),  # millions
)


def run(argv: list[str]) -> int:
    """Run the command."""
    if argv[:1] == ["data"]:
        from vision_accel.cli import bench_data  # noqa: PLC0415

        return bench_data.run(argv[1:])
    options = parse(Bench, argv, "vision-accel bench")
    import torch  # noqa: PLC0415  (slow to import: --help must not wait for it)

    try:
        sizes = [int(size) for size in options.batch_size.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise ValueError(f"--batch-size: expected positive numbers with commas, got {options.batch_size!r}")
    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"--threads: must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    is_path = Path(options.model).exists() or "/" in options.model
    dtype, device = options.torch_dtype, va.models.choose_device(options.device)
    model = options.load(options.model) if is_path else va.create_model(options.model)
    model = model.eval().to(device, dtype)
    records = []
    for size in sizes:
        for part, image, call in _passes(model, size, options.img_size, device, dtype):
            with torch.inference_mode():
                times = _times(call, options.seconds)
            records.append(
                {
                    "model": f"{options.model} {part}".strip(),
                    "infer_samples_per_sec": size / statistics.median(times),
                    "infer_step_time": 1e3 * statistics.median(times),
                    "infer_step_time_min": 1e3 * min(times),
                    "infer_batch_size": size,
                    "infer_img_size": image
                    and (image[0] if image[0] == image[1] else "x".join(map(str, image))),
                    "infer_gmacs": gmacs(model) if isinstance(model, va.ViT) else None,
                    "param_count": model.num_params() / 1e6,
                }
            )
    if options.json:
        print(json.dumps(records, indent=2))
        return 0
    rows = [[name for name, _ in COLUMNS]]
    rows += [["-" if r[name] is None else format(r[name], form) for name, form in COLUMNS] for r in records]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    return 0


def _passes(
    model: Any, batch: int, img_size: int | None, device: "torch.device", dtype: "torch.dtype"
) -> Iterator[tuple[str, tuple[int, int] | None, Callable[[], Any]]]:
    """What the model does with a batch of random input: a name, height and width of images, and the pass."""
    import torch  # noqa: PLC0415

    def forward(run: Callable[[torch.Tensor], Any], *shape: int) -> Callable[[], None]:
        x = torch.randn(batch, *shape, device=device, dtype=dtype)

        def call() -> None:
            run(x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return call

    if isinstance(model, va.AutoencoderKL):
        c = model.config
        h, w = image = (img_size, img_size) if img_size else c.image_size
        yield "encode", image, forward(model.encode, c.in_channels, h, w)
        yield "decode", image, forward(model.decode, c.latent_channels, h // c.factor, w // c.factor)
        return
    if img_size is not None:
        raise ValueError("--img-size: is for an AutoencoderKL; other models know the size of their images")
    tower = model.config.vision if isinstance(model, va.CLIP) else model.config
    image = tower.img_size
    if not isinstance(model, va.CLIP):
        yield "", image, forward(model, tower.in_chans, *image)
        return
    yield "image", image, forward(model.encode_image, tower.in_chans, *image)
    text = model.config.text
    tokens = torch.zeros(batch, text.context_length, dtype=torch.int64, device=device)
    tokens[:, -1] = min(text.eos_id, text.vocab_size - 1)  # no text ends earlier
    yield "text", None, forward(lambda _: model.encode_text(tokens))


def _times(call: Any, seconds: float) -> list[float]:
    """Seconds of each call after a warm-up."""
    for _ in range(2):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return times


def gmacs(model: Any) -> float:
    """Billions of multiply-adds of one image through a ViT, counted as timm does: all tokens, all blocks."""
    c = model.config
    tokens = model.patch_embed.num_patches + c.num_prefix_tokens
    macs = model.patch_embed.num_patches * model.patch_embed.proj.weight.numel()
    for name, weight in model.named_parameters():
        if name.endswith(".weight") and weight.ndim == 2:
            macs += weight.numel() * (tokens if name.startswith("blocks.") else 1)
    macs += c.depth * 2 * tokens**2 * c.embed_dim
    return float(macs) * 1e-9
