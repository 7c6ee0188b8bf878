# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys

import pytest

from vision_accel import _C

SHOW = "import json, sys, vision_accel as va; print(json.dumps([va.info(), 'torch' in sys.modules]))"


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("isa", _C.available_isas())
def test_chosen_by_the_environment(isa):
    result = run(SHOW, VISION_ACCEL_ISA=isa)
    info, has_torch = json.loads(result.stdout)
    assert info["isa"] == isa
    assert info["available_isas"] == _C.available_isas()
    assert not has_torch


def test_the_best_one_by_default():
    for environment in ({"VISION_ACCEL_ISA": ""}, {}):
        code = "import os; os.environ.pop('VISION_ACCEL_ISA', 0) if %r else 0; " % (not environment) + SHOW
        info, _ = json.loads(run(code, **environment).stdout)
        assert info["isa"] == _C.available_isas()[-1]


@pytest.mark.parametrize("name", ["sse9", "AVX2", "avx"])
def test_a_wrong_name_is_one_clear_error(name):
    result = run("import vision_accel; vision_accel.info()", VISION_ACCEL_ISA=name)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    names = ", ".join(_C.available_isas())
    assert last == f"ValueError: VISION_ACCEL_ISA must be one of {names} on this machine, got {name}"


def test_set_isa():
    before = _C.active_isa()
    with pytest.raises(ValueError, match=r"set_isa: name must be one of .*, got sse9"):
        _C.set_isa("sse9")
    assert _C.active_isa() == before


def test_info():
    import vision_accel as va

    info = va.info()
    assert info["version"] == va.__version__
    assert info["threads"] >= 1
    assert {"python", "platform", "isa", "threading", "cuda", "gpus", "torch"} <= set(info)


def test_import_is_light():
    result = run(
        "import time; start = time.perf_counter(); import vision_accel; import sys;"
        "print(time.perf_counter() - start, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    seconds, *loaded = result.stdout.split()
    print(f"import vision_accel takes {float(seconds) * 1e3:.0f} ms")
    assert loaded == ["False", "False"]
