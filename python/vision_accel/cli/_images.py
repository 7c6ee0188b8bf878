# SPDX-License-Identifier: Apache-2.0
"""What the commands that read images share."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import vision_accel as va

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def find(arguments: Sequence[str]) -> list[str]:
    """The image files that the arguments stand for; each argument must stand for at least one.

    Raises:
        ValueError: no argument, a folder without images, a pattern without match.
        FileNotFoundError: a path that does not exist.
    """
    if not arguments:
        raise ValueError("no images given: name files, folders or patterns")
    paths = [name for name, _ in va.infer.expand(arguments)]
    for path in paths:
        Path(path).stat()
    return paths


def write_grid(file: Path, title: str, scores: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> None:
    """One PNG of images and, below each, names with scores; a file that is gone leaves a gap."""
    from PIL import Image  # noqa: PLC0415  (slow to import, as torch is: --help must not wait for them)

    from vision_accel.data.images import load_image  # noqa: PLC0415

    cards = []
    for source, named in scores:
        card = va.infer.Classification(source, [va.infer.Prediction(*pair) for pair in named])
        if Path(source).is_file():
            card.thumbnail = Image.fromarray(load_image(source))
            card.thumbnail.thumbnail((200, 200))
        cards.append(card)
    with va.infer.replacing(file) as out:
        va.infer.draw_grid(cards, title).save(out, "PNG")


def read_lines(file: Path | None) -> list[str]:
    """The lines of a text file that are not empty; none for None."""
    if file is None:
        return []
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{file}: is not a text file in UTF-8") from None


@dataclass
class OnDevice:
    """The option of a command that says where its model runs."""

    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: a GPU when there is one and this build has CUDA kernels."""


@dataclass
class Placed(OnDevice):
    """The options of a command that say where and in what type its model runs."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Storage type of the weights."""

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The type that ``dtype`` names."""
        import torch  # noqa: PLC0415

        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.dtype]

    def load(self, name: str) -> Any:
        """``va.load`` to this place."""
        return va.load(name, self.device, self.torch_dtype)


def load_autoencoder(place: Placed, name: str, max_memory: str | None) -> Any:
    """An AutoencoderKL that keeps to ``max_memory``."""
    model = place.load(name)
    if not isinstance(model, va.AutoencoderKL):
        raise ValueError(f"{name} is a {type(model).__name__}; this command needs an AutoencoderKL")
    if max_memory is not None:
        model.enable_tiling(max_memory=max_memory)
    return model


def progress(results: Iterable[T], total: int) -> Iterator[T]:
    """The same results with a progress bar on stderr, when somebody looks at a terminal."""
    from tqdm import tqdm  # noqa: PLC0415

    # With stdout on the terminal too, the results themselves show the progress.
    quiet = not sys.stderr.isatty() or sys.stdout.isatty()
    return iter(tqdm(results, total=total, unit="image", disable=quiet))


def complain(source: str, error: str | None) -> bool:
    """Name a bad image on stderr; whether it was bad."""
    if error is not None:
        text = error if source in error else f"{source}: {error}"
        print(f"vision-accel: {text}", file=sys.stderr)
    return error is not None
