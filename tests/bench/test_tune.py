# SPDX-License-Identifier: Apache-2.0
"""The tuner of linear's tiles, with a timer that only pretends."""

import shutil

import pytest

from bench import tune
from bench.tune import Entry, Product
from vision_accel import _C


def test_only_what_beats_the_rule_is_kept():
    fast, equal, slow = (Product("kk", m, 768, 768) for m in (100, 200, 300))
    times = {
        fast: {"": 1.0, "sm80_large": 0.9, "sm80_small": 0.5},
        equal: {"": 1.0, "sm80_large": 0.99, "sm80_small": 1.0},
        slow: {"": 1.0, "sm80_large": 2.0, "sm80_small": 3.0},
    }
    entries = tune.tune(times, lambda p, c: times[p][c], tune.CHOICES[:2], 8, 108)
    assert entries == [Entry(8, 108, fast, "sm80_small")]


def test_the_entries_of_other_gpus_stay(tmp_path):
    table = tmp_path / "table.h"
    shutil.copy(tune.TABLE, table)
    before = table.read_text()
    a100 = [Entry(8, 108, Product("mm", 768, 768, 9000), "sm80_small")]
    h100 = [Entry(9, 132, Product("kk", m, 768, 768), "sm90_large") for m in (197, 12608)]
    tune.write(a100, table)
    tune.write(h100, table)
    tune.write(h100[1:], table)  # measured again
    lines = [line for line in table.read_text().splitlines() if "Choice::" in line]
    assert lines == [a100[0].text(), h100[1].text()]
    assert lines[0] == "    {8, 108, Major::mm, 768, 768, 9000, Choice::sm80_small},"
    assert before.split("kMeasured")[0] == table.read_text().split("kMeasured")[0]


def test_products_are_distinct_and_of_all_forms():
    found = tune.products()
    assert len(set(found)) == len(found)
    assert {p.form for p in found} == {"kk", "km", "mm"}


@pytest.mark.cuda
def test_tiles_have_names():
    with pytest.raises(ValueError, match="tile must be"):
        _C.linear_force_tile("huge")
