# SPDX-License-Identifier: Apache-2.0
"""A data loading worker that dies ends the run with a clear error, not with a hang."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from vision_accel.train import DataError, checkpoint, fit
from vision_accel.train.distributed import World
from vision_accel.train.tasks.classify import Classify


class Killer(Classify):
    """Kills a worker when the loss of a step is computed."""

    calls = 0

    def loss(self, model, batch, rng):
        self.calls += 1
        if self.calls == 4:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        return super().loss(model, batch, rng)


def test_killed_worker(small_run):
    handler = signal.getsignal(signal.SIGCHLD)
    small_run.data.workers, small_run.train.save_every, small_run.train.steps = 2, 2, 1000
    with pytest.raises(DataError, match="a data loading worker died") as caught:
        fit(small_run, Killer(small_run, World(torch.device("cpu"))))
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGCHLD) is handler  # torch's raises anywhere, also where a lock is held
    checkpoints = Path(small_run.train.out) / "checkpoints"
    assert checkpoint.load_latest(checkpoints).step >= 2
    assert not list(checkpoints.glob("*.tmp"))
