# SPDX-License-Identifier: Apache-2.0
"""Checks of what configs of other libraries say. Errors name the option."""

import math
from collections.abc import Iterable, Mapping
from typing import Any


def group(options: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The options under a key, none if there is none; a ValueError if it holds something else."""
    value = options.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{key} must be a group of options, got {value!r}")
    return dict(value or {})


def check_numbers(
    where: str, options: Mapping[str, Any], whole: Iterable[str] = (), real: Iterable[str] = ()
) -> None:
    """Raise a ValueError unless these options, as far as they are there, are numbers.

    Args:
        where: stands in front of their names.
        options: names and values.
        whole: options that are whole numbers, or lists of them.
        real: options that are any finite numbers, perhaps as text.
    """
    for name in (n for n in whole if n in options):
        value = options[name]
        if not all(type(v) is int for v in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{where}{name} must be a whole number, got {value!r}")
    for name in (n for n in real if n in options):
        if not _is_number(options[name]):
            raise ValueError(f"{where}{name} must be a number, got {options[name]!r}")


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
