# SPDX-License-Identifier: Apache-2.0
"""How the demos train."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from vision_accel import train
from vision_accel.demo.errors import DemoError
from vision_accel.train.config import TrainOptions


def run_options(out: Path, steps: int, seed: int) -> TrainOptions:
    """A run on the CPU in ``out/run``, evaluated and saved four times; it goes on if it is there already."""
    return TrainOptions(
        out=str(out / "run"),
        steps=steps,
        seed=seed,
        device="cpu",
        # The held-out images must not choose the weights that they then judge.
        export="last",
        eval_every=max(1, steps // 4),
        save_every=max(1, steps // 4),
        resume=(out / "run").exists(),
    )


def fit(config: train.Config, out: Path, say: Callable[[str], None], hint: str = "") -> train.RunResult:
    """Train, and leave ``curves.png`` in ``out``.

    Raises:
        DemoError: the run was stopped; ``hint`` says what to do then.
    """
    start = time.monotonic()
    result = train.fit(config)
    if result.stopped_by:
        raise DemoError(f"training was stopped by {result.stopped_by}{hint}")
    shutil.copyfile(result.run_dir / "curves.png", out / "curves.png")
    say(f"trained {result.step} steps in {time.monotonic() - start:.0f} s; curves: {out / 'curves.png'}")
    return result
