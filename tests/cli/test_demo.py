# SPDX-License-Identifier: Apache-2.0
from importlib import import_module

import pytest

from vision_accel.demo.errors import DemoError


@pytest.mark.parametrize("name", [[], ["clip"], ["autoencoder-kl"]])
def test_demo(run, monkeypatch, tmp_path, name):
    module = import_module(".".join(["vision_accel.demo", *name]).removesuffix("-kl"))
    asked = []

    def demo(out, *, say, **options):
        asked.append((out, options))
        say("a line")
        raise DemoError("it did not work")

    monkeypatch.setattr(module, "run", demo)
    flags = ["--steps", 3, "--resume"] if name else ["--epochs", 3, "--no-timing"]
    code, out, err = run("demo", *name, "--output", tmp_path / "new", "--seed", 5, *flags)
    assert (code, out, err) == (1, "a line\n", "vision-accel demo: it did not work\n")
    expected = {"steps": 3, "resume": True} if name else {"epochs": 3, "timing": False}
    assert asked == [(tmp_path / "new", {"seed": 5, **expected})]
    assert (tmp_path / "new").is_dir()
