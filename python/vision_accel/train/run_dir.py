# SPDX-License-Identifier: Apache-2.0
"""The folder of one run: options, metrics, curves, checkpoints and the finished model."""

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from vision_accel.data.source import BadSample
from vision_accel.train import checkpoint
from vision_accel.train.config import Config, changed, save_config
from vision_accel.train.errors import CheckpointError, ConfigError
from vision_accel.train.report import Reporter, create_reporters

Record = dict[str, Any]


class RunDir:
    """Everything that a run writes. Only the leading process has one.

    ::

        config.yaml          the options
        metrics.jsonl        one JSON object per line
        curves.png           loss, learning rate and accuracy
        bad_samples.jsonl    files that could not be read
        samples.RANK.jsonl   names of the samples of every step, with data.log_samples
        checkpoints/step_N/  what --resume needs
        LATEST               name of the newest checkpoint
        model/               the finished model, for va.load

    Raises:
        ConfigError: the folder holds a run already and the options do not say to resume it.
        CheckpointError: it cannot be written.
    """

    def __init__(self, config: Config) -> None:
        self.path = Path(config.train.out)
        self.checkpoints = self.path / "checkpoints"
        self.latest = self.path / "LATEST"
        self.model = self.path / "model"
        self._metrics = self.path / "metrics.jsonl"
        self._bad = self.path / "bad_samples.jsonl"
        options = self.path / "config.yaml"
        self.changes: list[str] = []
        with writing(self.path):
            if (self._metrics.exists() or self.checkpoints.exists()) and not config.train.resume:
                raise ConfigError(
                    f"train.out: {self.path} holds a run already; set train.resume or name another folder"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            if options.exists():
                before = yaml.safe_load(options.read_text(encoding="utf-8"))
                self.changes = [c for c in changed(before or {}, config.to_dict()) if "train.resume" not in c]
            aside = options.with_suffix(".yaml.tmp")
            save_config(config, aside)
            aside.replace(options)
            checkpoint.remove_leftovers(self.path)
            checkpoint.remove_leftovers(self.checkpoints)
        self._reporters: list[Reporter] = create_reporters(config, self.path)

    def continue_from(self, step: int) -> None:
        """Drop metrics of later steps, which the resumed run writes again, and lines that a kill cut off."""
        rewrite(self._metrics, [r for r in self.metrics() if r.get("step", 0) <= step])
        rewrite(self._bad, read_lines(self._bad))

    def log(self, record: Record) -> None:
        """Add a line of metrics; values that JSON has no number for become null."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        append(self._metrics, [clean])
        for reporter in self._reporters:
            reporter.log(clean)

    def metrics(self) -> list[Record]:
        """All lines so far; a line that was cut off by a kill is left out."""
        return list(read_lines(self._metrics))

    def add_bad(self, samples: Iterable[BadSample]) -> None:
        """Name files that could not be read."""
        append(self._bad, [s._asdict() for s in samples])

    def bad(self) -> list[BadSample]:
        """Files that could not be read so far."""
        return [BadSample(line["file"], line["error"]) for line in read_lines(self._bad)]

    def export(self, write: Callable[[Path], object]) -> None:
        """Replace the finished model by what ``write`` puts into a new folder."""
        aside = self.path / "model.tmp"
        with writing(self.model):
            try:
                aside.mkdir()
                write(aside / "model")
                checkpoint.replace_folder(aside / "model", self.model)
            finally:
                checkpoint.remove_leftovers(self.path)

    def draw(self) -> None:
        """Write curves.png from the metrics."""
        from vision_accel.train.curves import draw  # noqa: PLC0415  matplotlib is slow to import

        aside = self.path / "curves.png.tmp"
        with writing(self.path / "curves.png"):
            draw(self.metrics(), aside)
            aside.replace(self.path / "curves.png")

    def close(self) -> None:
        """Finish the reports."""
        for reporter in self._reporters:
            reporter.close()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn failures of the file system into one clear error."""
    try:
        yield
    except OSError as e:
        raise CheckpointError(f"{path}: cannot write: {e.strerror or e}") from e


def rewrite(path: Path, records: Iterable[Record]) -> None:
    """Replace a file of JSON lines, if there is one."""
    if path.exists():
        with writing(path):
            checkpoint.write_atomically(path, "".join(json.dumps(r) + "\n" for r in records))


def append(path: Path, records: Iterable[Record]) -> None:
    """Add JSON lines."""
    text = "".join(json.dumps(r) + "\n" for r in records)
    with writing(path), path.open("a", encoding="utf-8") as f:
        f.write(text)


def read_lines(path: Path) -> Iterator[Record]:
    """The JSON lines of a file; one that was cut off by a kill is left out."""
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                record = json.loads(line)
                if isinstance(record, dict):
                    yield record
