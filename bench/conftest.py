# SPDX-License-Identifier: Apache-2.0
"""``pytest bench``: pytest-benchmark times our call, and the table below it compares with the peers."""

from collections.abc import Callable
from typing import Any

import pytest

from bench import common

RECORDS = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--peers", action="store_true", help="also time torch.compile, OpenVINO and ONNX Runtime"
    )
    parser.addoption("--seconds", type=float, default=1.0, help="time spent on each implementation of a case")


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any) -> Callable[[common.Workload], None]:
    """Verify a workload, time it interleaved with its peers, then give our call to pytest-benchmark."""

    def run(workload: common.Workload) -> None:
        option = request.config.getoption
        if benchmark.disabled:  # --benchmark-disable: only checks that every benchmark still works
            common.verify(workload.ours, workload.peers, workload.tolerance)
            benchmark(workload.ours)
            return
        record = common.measure(workload, peers=option("--peers"), seconds=option("--seconds"))
        request.config.stash.setdefault(RECORDS, {})[request.node.name] = record
        benchmark.extra_info.update(record, environment=common.environment())
        benchmark(workload.ours)

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if records := config.stash.get(RECORDS, {}):
        terminalreporter.section("ours and the peers, interleaved in one run")
        terminalreporter.line(common.table(records))
