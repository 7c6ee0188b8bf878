# SPDX-License-Identifier: Apache-2.0
"""The processes of one run, as torchrun starts them; a single process is a world of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from vision_accel.models.device import choose_device
from vision_accel.train.errors import ConfigError

_T = TypeVar("_T")


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over all processes."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        result: list[float] = total.tolist()
        return result

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return self.sum([float(flag)])[0] > 0

    def gather(self, items: list[_T]) -> list[_T]:
        """All processes' items, in the order of ranks."""
        if self.size == 1:
            return items
        parts: list[list[_T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]


@contextmanager
def join(device: str) -> Iterator[World]:
    """Take part in the run that torchrun started, with gloo on the CPU and NCCL on GPUs.

    Args:
        device: auto, cpu, cuda or cuda:N; "cuda" means the process's own GPU.

    Raises:
        ConfigError: there is no such device.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    try:
        chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    except ValueError as e:
        raise ConfigError(f"train.{e}") from e
    if chosen.type not in {"cpu", "cuda"}:
        raise ConfigError(f"train.device: must be auto, cpu, cuda or cuda:N, got {device!r}")
    if size == 1:
        yield World(chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(chosen, rank, size)
    finally:
        if ours:
            dist.destroy_process_group()
