# SPDX-License-Identifier: Apache-2.0
"""Counts the files of a run that cannot be read."""

from vision_accel.data.folder import too_many_bad
from vision_accel.data.source import BadSample
from vision_accel.train.config import DataOptions
from vision_accel.train.distributed import World
from vision_accel.train.run_dir import RunDir


class BadSamples:
    """Unreadable files of all processes, each counted and named once.

    Args:
        world: the processes.
        run_dir: where files are named; None but in the leading process.
        options: name the folder and the limit.
        size: number of training images, those that cannot be read included.
    """

    def __init__(self, world: World, run_dir: RunDir | None, options: DataOptions, size: int) -> None:
        self.world, self.dir, self.options, self.size = world, run_dir, options, size
        self.errors: dict[str, str] = {}  # file -> why
        self._new: dict[str, str] = {}

    def continue_run(self) -> None:
        """Take over what the run directory names already."""
        known = [] if self.dir is None else self.dir.bad()
        self.errors = {b.file: b.error for b in self.world.gather(known)}

    def note(self, bad: list[BadSample]) -> None:
        """Take the files of a batch; other processes hear of them at the next ``share``."""
        self._new.update({b.file: b.error for b in bad if b.file not in self.errors})
        if self.world.size == 1 and self._new:
            self.share()

    def share(self) -> None:
        """Exchange what is new between all processes, and name it in the run directory.

        Raises:
            DataError: too many files cannot be read.
        """
        new = {b.file: b for b in self.world.gather([BadSample(*item) for item in self._new.items()])}
        self._new = {}
        fresh = [b for b in new.values() if b.file not in self.errors]
        self.errors.update({b.file: b.error for b in fresh})
        if fresh and self.dir is not None:
            self.dir.add_bad(fresh)
        if len(self.errors) > self.options.max_bad_fraction * self.size:
            raise too_many_bad(self.options.train, self.size, self.errors, self.options.max_bad_fraction)
