# SPDX-License-Identifier: Apache-2.0
"""``vision-accel demo``."""

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


def run(argv: list[str]) -> int:
    """Run the command."""
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
