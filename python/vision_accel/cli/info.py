# SPDX-License-Identifier: Apache-2.0
"""``vision-accel info``."""

import json
from dataclasses import dataclass

from tyro.conf import FlagCreatePairsOff

import vision_accel as va
from vision_accel.cli._options import parse


@dataclass
class Info:
    """Show the build, the instruction set, threads and devices."""

    json: FlagCreatePairsOff[bool] = False
    """Print JSON."""


def run(argv: list[str]) -> int:
    """Run the command."""
    options = parse(Info, argv, "vision-accel info")
    facts = va.info()
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else value
        print(f"{name.replace('_', ' '):<{width}}  {text}")
    return 0
