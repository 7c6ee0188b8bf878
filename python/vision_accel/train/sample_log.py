# SPDX-License-Identifier: Apache-2.0
"""Names the samples of every step, of one process."""

from pathlib import Path

from vision_accel.data.source import Source
from vision_accel.train.run_dir import append, read_lines, rewrite


class SampleLog:
    """``samples.RANK.jsonl`` of a run: one line per micro-batch, ``{"step": 0, "samples": [name, ...]}``.

    Args:
        run: the run directory.
        rank: of this process.
        source: knows the names.
    """

    def __init__(self, run: Path, rank: int, source: Source) -> None:
        self.path, self.source = run / f"samples.{rank}.jsonl", source

    def continue_from(self, step: int) -> None:
        """Drop what the resumed run writes again."""
        rewrite(self.path, [r for r in read_lines(self.path) if r.get("step", 0) < step])

    def add(self, step: int, indices: tuple[int, ...]) -> None:
        """Add a micro-batch of a step that is about to be done."""
        append(self.path, [{"step": step, "samples": [self.source.name(i) for i in indices]}])
