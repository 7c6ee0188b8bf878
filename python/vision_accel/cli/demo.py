# SPDX-License-Identifier: Apache-2.0
"""``vision-accel demo`` and ``vision-accel demo autoencoder-kl``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from vision_accel.cli._options import parse


@dataclass
class Demo:
    """Train and show a small model on pictures made here; minutes on two cores.

    vit: handwritten digits; trains, evaluates, saves, reloads and times a ViT. clip: coloured shapes with
    captions; a CLIP names combinations that it has never seen. The exit code is 1 when the accuracy is below
    0.98 (vit) or 0.90 (clip), or the reloaded model differs.
    """

    name: Annotated[Positional[Literal["vit", "clip"]], arg(metavar="{vit,clip}")] = "vit"
    """Which demo."""
    output: Path = Path("demo_output")
    """Folder for the images, the run, and pictures of the curves and predictions."""
    epochs: float | None = None
    """Passes over the training images; each demo has its own number."""
    seed: int = 0
    """Seed of the weights, the order of images and their augmentation."""
    no_timing: FlagCreatePairsOff[bool] = False
    """Leave out the comparison with PyTorch (vit)."""


@dataclass
class AutoencoderDemo:
    """Train a small AutoencoderKL on photographs of scikit-learn and scikit-image; minutes on two cores.

    The exit code is 1 when the reconstructions of crops it never saw have a PSNR below 24 dB.
    """

    output: Path = Path("demo_output/autoencoder-kl")
    """Folder for the crops, the run, curves.png and reconstructions.png."""
    steps: int = 1200
    """Steps of training."""
    seed: int = 0
    """Seed of the weights, the order of images and their augmentation."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on with an interrupted run: it ends with the same weights."""


def _autoencoder(argv: list[str]) -> int:
    options = parse(AutoencoderDemo, argv, "vision-accel demo autoencoder-kl")
    from vision_accel.demo import autoencoder  # noqa: PLC0415  (imports torch: --help must not wait for it)

    options.output.mkdir(parents=True, exist_ok=True)
    autoencoder.run(
        options.output,
        steps=options.steps,
        seed=options.seed,
        resume=options.resume,
        say=lambda text: print(text, flush=True),
    )
    return 0


def run(argv: list[str]) -> int:
    """Run the command."""
    if argv and argv[0] == "autoencoder-kl":
        return _autoencoder(argv[1:])
    options = parse(Demo, argv, "vision-accel demo")
    from vision_accel import demo  # noqa: PLC0415  (imports torch: --help must not wait for it)

    options.output.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print(text, flush=True)

    if options.name == "clip":
        from vision_accel.demo import clip  # noqa: PLC0415

        clip.run(options.output, epochs=options.epochs or clip.EPOCHS, seed=options.seed, say=say)
        return 0
    timing = not options.no_timing
    demo.run(options.output, epochs=options.epochs or 50, seed=options.seed, timing=timing, say=say)
    return 0
