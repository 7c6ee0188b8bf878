# SPDX-License-Identifier: Apache-2.0
"""``vision-accel demo``, ``demo clip`` and ``demo autoencoder-kl``."""

import sys
from dataclasses import dataclass
from functools import partial
from importlib import import_module
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
    timing: bool = True
    """Compare the speed with PyTorch's."""


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


# First argument -> options and module of a demo; the first is the one without a name.
_DEMOS: dict[str, tuple[type[Demo | AutoencoderDemo | ClipDemo], str]] = {
    "": (Demo, "vision_accel.demo"),
    "autoencoder-kl": (AutoencoderDemo, "vision_accel.demo.autoencoder"),
    "clip": (ClipDemo, "vision_accel.demo.clip"),
}


def run(argv: list[str]) -> int:
    """Run the command."""
    name = argv[0] if argv and argv[0] in _DEMOS else ""
    kind, module = _DEMOS[name]
    options = vars(parse(kind, argv[1:] if name else argv, f"vision-accel demo {name}".strip()))
    demo = import_module(module)  # imports torch, for which --help must not wait
    out = options.pop("output")
    out.mkdir(parents=True, exist_ok=True)
    try:
        demo.run(out, **options, say=partial(print, flush=True))
    except demo.DemoError as error:
        print(f"vision-accel demo: {error}", file=sys.stderr)
        return 1
    return 0
