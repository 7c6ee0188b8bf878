# SPDX-License-Identifier: Apache-2.0
"""``vision-accel demo``, ``demo clip`` and ``demo autoencoder-kl``."""

import importlib
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import FlagCreatePairsOff

from vision_accel.cli._options import parse


@dataclass
class Demo:
    """Train, evaluate, save, reload and time a small ViT on handwritten digits; a few minutes on two cores.

    The exit code is 1 when the accuracy is below 0.98 or the reloaded model differs.
    """

    output: Path = Path("demo_output")
    """Folder for the images, the run, curves.png and predictions.png."""
    epochs: float = 50
    """Passes over the training images."""
    seed: int = 0
    """Seed of the weights, the order of images and their augmentation."""
    no_timing: FlagCreatePairsOff[bool] = False
    """Leave out the comparison with PyTorch."""


@dataclass
class AutoencoderDemo:
    """Train a small AutoencoderKL on photographs of scikit-learn and scikit-image; minutes on two cores.

    The exit code is 1 when the reconstructions of crops it never saw have a PSNR below 24 dB.
    """

    output: Path = Path("demo_output/autoencoder-kl")
    """Folder for the crops, the run, curves.png and reconstructions.png."""
    steps: int = 2400
    """Steps of training."""
    seed: int = 0
    """Seed of the weights, the order of images and their augmentation."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on with an interrupted run: it ends with the same weights."""


@dataclass
class ClipDemo:
    """Train a small CLIP on captioned pictures of shapes that are drawn here; minutes on two cores.

    It then names combinations of colour and shape that training never showed. The exit code is 1 when fewer
    than 90 in 100 are right.
    """

    output: Path = Path("demo_output/clip")
    """Folder for the pictures, the run, curves.png, predictions.png and retrieval.png."""
    steps: int = 2500
    """Steps of training."""
    seed: int = 0
    """Seed of the pictures, the weights and the order."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on with an interrupted run: it ends with the same weights."""


_OTHERS: dict[str, tuple[type[AutoencoderDemo | ClipDemo], str]] = {
    "autoencoder-kl": (AutoencoderDemo, "autoencoder"),
    "clip": (ClipDemo, "clip"),
}


def _run_other(name: str, argv: list[str]) -> int:
    kind, module = _OTHERS[name]
    options = parse(kind, argv, f"vision-accel demo {name}")
    # Imports torch, for which --help must not wait.
    demo = importlib.import_module(f"vision_accel.demo.{module}")
    options.output.mkdir(parents=True, exist_ok=True)
    demo.run(
        options.output,
        steps=options.steps,
        seed=options.seed,
        resume=options.resume,
        say=lambda text: print(text, flush=True),
    )
    return 0


def run(argv: list[str]) -> int:
    """Run the command."""
    if argv and argv[0] in _OTHERS:
        return _run_other(argv[0], argv[1:])
    options = parse(Demo, argv, "vision-accel demo")
    from vision_accel import demo  # noqa: PLC0415  (imports torch: --help must not wait for it)

    options.output.mkdir(parents=True, exist_ok=True)
    demo.run(
        options.output,
        epochs=options.epochs,
        seed=options.seed,
        timing=not options.no_timing,
        say=lambda text: print(text, flush=True),
    )
    return 0
