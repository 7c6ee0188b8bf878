# SPDX-License-Identifier: Apache-2.0
import pytest

from vision_accel.cli import main


@pytest.fixture
def run(capsys):
    """Runs one command; returns its exit code, stdout and stderr."""

    def call(*argv):
        code = main([str(a) for a in argv])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def fails(run):
    """Runs a command that must fail with exit code 2 and one line on stderr, which is returned."""

    def call(*argv):
        code, out, err = run(*argv)
        assert code == 2, err
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.startswith("vision-accel")
        assert "Traceback" not in err
        return err

    return call
