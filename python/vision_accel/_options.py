# SPDX-License-Identifier: Apache-2.0
"""Nested plain values, as in a YAML file -> a dataclass of options. Mistakes are one-line ValueErrors."""

import dataclasses
import difflib
import numbers
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from vision_accel._suggest import did_you_mean

T = TypeVar("T")


def read_yaml(path: Path) -> Any:
    """What a YAML file says; ``{}`` for an empty one.

    Raises:
        ValueError: unreadable, or not YAML. The message does not name the file.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ValueError(f"cannot read the configuration: {e.strerror}") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ValueError(f"not a YAML file: {' '.join(str(e).split())}") from e
    return {} if values is None else values


def from_values(cls: type[T], values: Any) -> T:
    """The dataclass ``cls`` with the fields that ``values`` sets; dashes in names count as underscores.

    Raises:
        ValueError: unknown option (the message suggests a near one) or a value of the wrong type.
    """
    return _group(cls, values, "", cls)


def check_fields(owner: str, options: Any) -> None:
    """Raise a ValueError unless every field of a dataclass holds what its type says, as it comes from JSON.

    A number in another form (``"1e-5"``, one of numpy's) and a list for a tuple are converted in place.
    """
    for name, hint in get_type_hints(type(options)).items():
        value = getattr(options, name)
        fits, converted = _match(hint, value)
        if not fits:
            raise ValueError(f"{owner}: {name} must be {_describe(hint)}, got {value!r}")
        object.__setattr__(options, name, converted)  # it may be frozen


def check_names(owner: str, names: Iterable[str], known: Sequence[str]) -> None:
    """Raise a TypeError for a name that is not known; it suggests the nearest one."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known)}"
            raise TypeError(f"{owner} has no option {name!r}{hint}")


def unknown_model(name: str, known: Iterable[str]) -> ValueError:
    """The error for a model's name that is not known."""
    near = difflib.get_close_matches(name, list(known), 3)
    hint = f"did you mean {' or '.join(near)}?" if near else "va.list_models() lists the names"
    return ValueError(f"unknown model {name!r}; {hint}")


def leaves(cls: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of every option below ``cls``."""
    for name, hint in get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield prefix + name


def _group(cls: type[T], values: Any, where: str, top: type) -> T:
    if not isinstance(values, Mapping):
        name = where.rstrip(".") or "configuration"
        raise ValueError(f"{name}: must be a group of options, got {values!r}")
    hints = get_type_hints(cls)
    fields = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in hints:
            raise ValueError(f"{where}{key}: unknown option{_suggestion(name, hints, where, top)}")
        if dataclasses.is_dataclass(hints[name]):
            fields[name] = _group(hints[name], value, f"{where}{name}.", top)
        else:
            fits, fields[name] = _match(hints[name], value)
            if not fits:
                raise ValueError(f"{where}{name}: must be {_describe(hints[name])}, got {value!r}")
    return cls(**fields)


def _suggestion(name: str, siblings: Mapping[str, Any], where: str, top: type) -> str:
    near = did_you_mean(name, [where + s for s in siblings]) or did_you_mean(name, leaves(top))
    return near or f"; known here: {', '.join(siblings)}"


def _match(hint: Any, value: Any) -> tuple[bool, Any]:
    """Whether the value fits the type, and the value in that type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in args and not isinstance(value, bool), value
    if origin in (Union, types.UnionType):
        return next((m for m in (_match(a, value) for a in args) if m[0]), (False, None))
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False, None
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            return False, None
        items = [_match(k, v) for k, v in zip(kinds, value, strict=True)]
        return all(i[0] for i in items), tuple(i[1] for i in items)
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
            return False, None
        pairs = {k: _match(args[1], v) for k, v in value.items()}
        return all(p[0] for p in pairs.values()), {k: p[1] for k, p in pairs.items()}
    if hint is float:
        return _number(value)
    if hint is Path:
        return isinstance(value, str | Path), value and Path(value)
    if hint is type(None):
        return value is None, None
    if isinstance(value, bool):
        return hint is bool, value
    if hint is int and isinstance(value, numbers.Integral):
        return True, int(value)
    return isinstance(value, hint), value


def _number(value: Any) -> tuple[bool, Any]:
    if isinstance(value, bool) or not isinstance(value, numbers.Real | str):
        return False, None
    try:
        return True, float(value)  # YAML reads 1e-3 as a string
    except (ValueError, OverflowError):
        return False, None


def _describe(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in args)
    if origin is tuple:
        each = [_describe(a) for a in args if a is not Ellipsis]
        return f"a list of {each[0]}" if args[-1] is Ellipsis else f"[{', '.join(each)}]"
    if origin is dict:
        return f"names with {_describe(args[1])}"
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        Path: "a path",
        bool: "true or false",
        type(None): "nothing",
    }
    return names.get(hint, str(hint))
