# SPDX-License-Identifier: Apache-2.0
"""Flags and YAML files -> a dataclass. Every mistake is a ValueError of one line."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro
import yaml

from vision_accel._suggest import did_you_mean

T = TypeVar("T")


def parse(
    cls: type[T], argv: Sequence[str], prog: str, description: str | None = None, defaults: Sequence[str] = ()
) -> T:
    """An instance of the dataclass ``cls`` from ``argv``.

    ``--config FILE.yaml`` comes before the flags, and the flags in ``defaults`` before both.

    Raises:
        ValueError: unknown key or flag (with the likely right one), missing or malformed value.
        SystemExit: 0 after ``--help``.
    """
    file, argv = _take_config(argv)
    flags = [] if file is None else _flags_of_file(cls, file)
    text = (description or cls.__doc__ or "").strip()
    text += (
        "\n\n--config FILE.yaml sets the same options (nested by the dots of their names); flags win over it."
    )
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            options, unknown = tyro.cli(
                cls, prog=prog, description=text, args=[*defaults, *flags, *argv], return_unknown_args=True
            )
    except SystemExit as stop:
        if stop.code in {0, None}:
            raise
        raise ValueError(_plain(errors.getvalue()) + (f" (in {file} or the flags)" if file else "")) from None
    if unknown:
        word = next((u for u in unknown if u.startswith("-")), unknown[0])
        if not word.startswith("-"):
            raise ValueError(f"unexpected argument {word!r}")
        names = [name.replace("_", "-") for name, _ in _leaves(cls)]
        name = word.lstrip("-").partition("=")[0].replace("_", "-")
        raise ValueError(f"unknown option {word!r}{did_you_mean(name, names)}".replace("mean '", "mean '--"))
    return options


def _take_config(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Split ``--config FILE`` (or ``--config=FILE``) from the other flags."""
    file, rest, words = None, [], iter(argv)
    for word in words:
        if word == "--config":
            value = next(words, None)
            if value is None:
                raise ValueError("--config needs a YAML file")
            file = Path(value)
        elif word.startswith("--config="):
            file = Path(word.partition("=")[2])
        else:
            rest.append(word)
    return file, rest


def _flags_of_file(cls: type, file: Path) -> list[str]:
    """What the YAML file says, as flags: tyro then checks its values exactly as it checks flags."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return []
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected keys and values at the top, got {type(values).__name__}")
    return list(_flags(cls, values, file, ""))


def _flags(cls: type, values: dict[Any, Any], file: Path, prefix: str) -> Iterator[str]:
    hints = get_type_hints(cls, include_extras=True)
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in names:
            choices = [leaf for leaf, _ in _leaves(cls, prefix)]
            raise ValueError(f"{file}: unknown key {prefix + str(key)!r}{did_you_mean(str(key), choices)}")
        kind = hints[name]
        flag = f"--{prefix}{name}"
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise ValueError(f"{file}: {prefix}{name} holds options of its own, got {value!r}")
            yield from _flags(kind, value, file, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif tyro.conf.Positional in getattr(kind, "__metadata__", ()):
            raise ValueError(f"{file}: {name} is an argument, not an option: give it on the command line")
        elif isinstance(value, bool) and _is_bool(kind):
            if value or tyro.conf.FlagCreatePairsOff not in getattr(kind, "__metadata__", ()):
                yield flag if value else f"--{prefix}no-{name}"
        elif isinstance(value, list):
            yield from (flag, *map(str, value))
        elif isinstance(value, dict):
            yield from (flag, *(str(word) for pair in value.items() for word in pair))
        else:
            yield from (flag, str(value))


def _is_bool(kind: Any) -> bool:
    return bool(getattr(kind, "__origin__", kind) is bool or kind is bool)


def _leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and types of every option below ``cls``."""
    hints = get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from _leaves(kind, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            yield prefix + field.name, kind


def _plain(box: str) -> str:
    """The message of a framed error of tyro on one line, without the help around it."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│╭╮╰╯ ") for line in box.splitlines()]
    body = []
    for line in lines[1:]:
        if line and not line.strip("─"):
            break
        body.append(line)
    return " ".join(body).strip() or box.strip()
