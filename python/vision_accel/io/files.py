# SPDX-License-Identifier: Apache-2.0
"""JSON files, and directories that are written whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; a ValueError names the file if there is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{file} is not valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(value).__name__}")
    return value


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Write a JSON file as transformers does: two spaces, sorted keys."""
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def written_aside(directory: Path) -> Iterator[Path]:
    """Gives a fresh directory to write to; when the block ends well, its files move to ``directory``.

    A new directory appears whole, by one rename. In one that exists, each file is replaced by a rename,
    config.json last, and other files stay. When the block fails, nothing has changed.
    """
    directory = Path(os.path.abspath(directory))  # noqa: PTH100  (resolve() would follow a link at the end)
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"{directory} is a file")
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        yield aside
        names = sorted((f.name for f in aside.iterdir()), key=lambda n: (n == "config.json", n))
        for name in names:
            _sync(aside / name)
        if directory.exists():
            for name in names:
                (aside / name).replace(directory / name)
        else:
            umask = os.umask(0)
            os.umask(umask)
            aside.chmod(0o777 & ~umask)  # mkdtemp keeps others out
            aside.rename(directory)
        _sync(directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
