# SPDX-License-Identifier: Apache-2.0
"""Every option of the command line is read by somebody: one that is not would be ignored in silence."""

import dataclasses
import re
from importlib import import_module
from pathlib import Path

import pytest

import vision_accel as va
from vision_accel._options import leaves

PACKAGE = Path(va.__file__).parent
# Defines options only; the demos hand theirs on as they are.
COMMANDS = sorted(f.stem for f in (PACKAGE / "cli").glob("[a-z]*.py") if f.stem not in {"train", "demo"})


@pytest.mark.parametrize("name", COMMANDS)
def test_options_of_a_command_are_read(name):
    module = import_module(f"vision_accel.cli.{name}")
    kinds = [
        k for k in vars(module).values() if dataclasses.is_dataclass(k) and k.__module__ == module.__name__
    ]
    source = Path(module.__file__).read_text() + (PACKAGE / "cli/_images.py").read_text()
    if name == "zero_shot":  # shows its labels as classify does
        source += (PACKAGE / "cli/classify.py").read_text()
    names = [f.name for kind in kinds for f in dataclasses.fields(kind) if kind.__name__ != "Row"]
    assert names
    assert [n for n in names if not re.search(rf"\b(options|self)\.{n}\b", source)] == []


def test_options_of_training_are_read():
    skipped = {PACKAGE / "train/config.py"}
    folders = ("train", "data")
    files = [f for folder in folders for f in (PACKAGE / folder).rglob("*.py") if f not in skipped]
    # What Config itself makes of some of its options.
    methods = (PACKAGE / "train/config.py").read_text().partition("class Config")[2]
    source = methods + "".join(f.read_text() for f in files)
    names = [name.rpartition(".")[2] for name in leaves(va.train.Config)]
    assert len(names) > 80
    assert [n for n in names if not re.search(rf"\w\.{n}\b", source)] == []
