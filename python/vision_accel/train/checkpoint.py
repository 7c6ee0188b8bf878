# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints that are complete or absent, and never executed.

A checkpoint is a folder ``step_000500`` of safetensors files (weights, optimiser, average), ``state.json``
(everything that is not a tensor) and ``index.json`` (size and SHA-256 of every other file). It is written
as ``step_000500.tmp``, flushed to the disk and renamed, so a folder of the final name is complete whenever
the process dies. Several processes can later add shards as further files of the index.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from vision_accel.train.errors import CheckpointError

_log = logging.getLogger(__name__)
_NAME = re.compile(r"step_(\d{6,})")
_FORMAT = 1
_TMP = ".tmp"


@dataclass
class Checkpoint:
    """What a run needs to go on."""

    step: int
    tensors: dict[str, dict[str, Tensor]]  # file stem -> name -> tensor
    state: dict[str, Any]  # plain JSON values


def save(checkpoint: Checkpoint, directory: Path, keep: int, latest: Path) -> Path:
    """Write a checkpoint, point ``latest`` at it, and delete all but the newest ``keep``.

    Args:
        checkpoint: what to write.
        directory: the folder of all checkpoints.
        keep: at least 1.
        latest: a file that holds the name of the newest checkpoint.

    Raises:
        CheckpointError: it could not be written; earlier checkpoints are as they were.
    """
    final = directory / f"step_{checkpoint.step:06d}"
    aside = final.with_name(final.name + _TMP)
    try:
        _remove(aside)
        aside.mkdir(parents=True)
        _write_files(checkpoint, aside)
        sync(aside)
        aside.rename(final)
        sync(directory)
        write_atomically(latest, final.name + "\n")
        for step in _steps(directory)[keep:]:
            old = directory / f"step_{step:06d}"
            old.rename(old.with_name(old.name + _TMP))  # a half deleted folder must not look complete
        remove_leftovers(directory)
    except Exception as e:
        raise CheckpointError(f"{final}: cannot save the checkpoint: {_reason(e)}") from e
    finally:
        _remove(aside, quietly=True)
    return final


def load_latest(directory: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are all intact; None if there are no checkpoints.

    A damaged checkpoint is reported, set aside as ``step_N.damaged``, and the one before it is taken.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    steps = _steps(directory)
    for step in steps:
        folder = directory / f"step_{step:06d}"
        try:
            return load(folder)
        except CheckpointError as e:
            _log.warning("%s; trying the checkpoint before it", e)
            damaged = folder.with_name(folder.name + ".damaged")
            _remove(damaged)
            folder.rename(damaged)
    if steps:
        raise CheckpointError(f"{directory}: all {len(steps)} checkpoints are damaged")
    return None


def load(folder: Path) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        CheckpointError: a file is missing or differs from what was written.
    """
    try:
        name = _NAME.fullmatch(folder.name)
        index = json.loads((folder / "index.json").read_bytes())
        if name is None or set(index) != {"format", "step", "files"}:
            raise ValueError("index.json is damaged")
        if index["format"] != _FORMAT or index["step"] != int(name[1]) or "state.json" not in index["files"]:
            raise ValueError("index.json is damaged, or of another version")
        for file, entry in index["files"].items():
            if entry != _fingerprint(folder / Path(file).name):
                raise ValueError(f"{file} is not what was written")
        state = json.loads((folder / "state.json").read_bytes())
        files = [folder / Path(f).name for f in index["files"] if f != "state.json"]
        return Checkpoint(index["step"], {f.stem: safetensors.torch.load_file(f) for f in files}, state)
    except Exception as e:
        raise CheckpointError(f"{folder}: damaged checkpoint: {_reason(e)}") from e


def remove_leftovers(directory: Path) -> None:
    """Delete what an interrupted process left half written or half deleted."""
    for path in directory.glob(f"*{_TMP}"):
        _remove(path, quietly=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by one with this text, so that it is always the old or the new one."""
    aside = path.with_name(path.name + _TMP)
    try:
        aside.write_text(text, encoding="utf-8")
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def replace_folder(aside: Path, final: Path) -> None:
    """Rename a finished folder to the name of another, which is deleted."""
    for path in [*aside.rglob("*"), aside]:
        sync(path)
    retired = final.with_name(final.name + ".old" + _TMP)
    _remove(retired)
    if final.exists():
        final.rename(retired)
    aside.rename(final)
    sync(final.parent)
    _remove(retired, quietly=True)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_files(checkpoint: Checkpoint, folder: Path) -> None:
    (folder / "state.json").write_text(json.dumps(checkpoint.state, indent=1), encoding="utf-8")
    for stem, tensors in checkpoint.tensors.items():
        contiguous = {name: t.detach().contiguous() for name, t in tensors.items()}
        safetensors.torch.save_file(contiguous, folder / f"{stem}.safetensors")
    files = {}
    for path in sorted(folder.iterdir()):
        sync(path)
        files[path.name] = _fingerprint(path)
    index = {"format": _FORMAT, "step": checkpoint.step, "files": files}
    (folder / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    sync(folder / "index.json")


def _fingerprint(path: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"size": size, "sha256": digest.hexdigest()}


def _steps(directory: Path) -> list[int]:
    """Steps of the checkpoints, newest first."""
    return sorted((int(m[1]) for m in _matches(directory)), reverse=True)


def _matches(directory: Path) -> Iterator[re.Match[str]]:
    if directory.is_dir():
        for path in directory.iterdir():
            if m := _NAME.fullmatch(path.name):
                yield m


def _remove(path: Path, quietly: bool = False) -> None:
    if path.exists():
        shutil.rmtree(path, ignore_errors=quietly)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())
