# SPDX-License-Identifier: Apache-2.0
"""Flags and YAML files -> a dataclass. Every mistake is a ValueError of one line."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_type_hints

import tyro

from vision_accel._options import from_values, leaves, read_yaml
from vision_accel._suggest import did_you_mean

T = TypeVar("T")


def parse(
    cls: type[T],
    argv: Sequence[str],
    prog: str,
    description: str | None = None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> T:
    """An instance of the dataclass ``cls`` from ``argv``.

    Flags win over ``--config FILE.yaml``, and the file over ``defaults``, which are nested as it is.

    Raises:
        ValueError: unknown key or flag (with the likely right one), missing or malformed value.
        SystemExit: 0 after ``--help``.
    """
    file, argv = _take_config(argv)
    default = _from_file(cls, file, defaults)
    # tyro would take a dict that is not empty for a group with a flag for each of its keys.
    tables = []
    for owner, name in _tables(default):
        tables.append(getattr(owner, name))
        setattr(owner, name, {})
    text = (description or cls.__doc__ or "").strip()
    text += (
        "\n\n--config FILE.yaml sets the same options (nested by the dots of their names); flags win over it."
    )
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            options, unknown = tyro.cli(
                cls, prog=prog, description=text, args=argv, default=default, return_unknown_args=True
            )
    except SystemExit as stop:
        if stop.code in {0, None}:
            raise
        raise ValueError(_plain(errors.getvalue())) from None
    if unknown:
        word = next((u for u in unknown if u.startswith("-")), unknown[0])
        if not word.startswith("-"):
            raise ValueError(f"unexpected argument {word!r}")
        names = [name.replace("_", "-") for name in leaves(cls)]
        name = word.lstrip("-").partition("=")[0].replace("_", "-")
        raise ValueError(f"unknown option {word!r}{did_you_mean(name, names)}".replace("mean '", "mean '--"))
    for (owner, name), table in zip(_tables(options), tables, strict=True):
        setattr(owner, name, getattr(owner, name) or table)
    return options


def _tables(options: Any) -> Iterator[tuple[Any, str]]:
    """Owner and name of each option that is a dict."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            yield from _tables(value)
        elif isinstance(value, dict):
            yield options, field.name


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


def _from_file(cls: type[T], file: Path | None, defaults: Mapping[str, Any]) -> T:
    """The options before the flags: the defaults of the command, and over them the file."""
    if file is None:
        return from_values(cls, defaults)
    try:
        values = read_yaml(file)
        from_values(cls, values)
        for name, hint in get_type_hints(cls, include_extras=True).items():
            if tyro.conf.Positional in getattr(hint, "__metadata__", ()) and name in values:
                raise ValueError(f"{name} is an argument, not an option: give it on the command line")
        return from_values(cls, _merged(defaults, values))
    except ValueError as e:
        raise ValueError(f"{file}: {e}") from e


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        group = both.get(key)
        both[key] = _merged(group, value) if isinstance(group, dict) else value
    return both


def _plain(box: str) -> str:
    """The message of a framed error of tyro on one line, without the help around it."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│╭╮╰╯ ") for line in box.splitlines()]
    body = []
    for line in lines[1:]:
        if line and not line.strip("─"):
            break
        body.append(line)
    return " ".join(body).strip() or box.strip()
