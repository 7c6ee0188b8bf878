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
    """A run on the CPU in ``out/run``, evaluated and saved four times, that can be resumed."""
    return TrainOptions(
        out=str(out / "run"),
        steps=steps,
        seed=seed,
        device="cpu",
        # The held-out images must not choose the weights that they then judge.
        export="last",
        eval_every=max(1, steps // 4),
        save_every=max(1, steps // 4),
        resume=True,
    )


def fit(config: train.Config, out: Path, say: Callable[[str], None]) -> train.RunResult:
    """Train, and leave ``curves.png`` in ``out``.

    Raises:
        DemoError: the run was stopped.
    """
    start = time.monotonic()
    result = train.fit(config)
    if result.stopped_by:
        hint = "; --resume goes on with it" if config.train.resume else ""
        raise DemoError(f"training was stopped by {result.stopped_by}{hint}")
    shutil.copyfile(result.run_dir / "curves.png", out / "curves.png")
    say(f"trained {result.step} steps in {time.monotonic() - start:.0f} s; curves: {out / 'curves.png'}")
    return result
