# SPDX-License-Identifier: Apache-2.0
"""What a call costs before any arithmetic, and what importing the package costs."""

import statistics
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from bench.common import Workload
from vision_accel import ops

CASES = {
    "layer_norm [1, 8], no grad": {"op": "layer_norm"},
    "layer_norm [1, 8], autograd records": {"op": "layer_norm", "grad": True},
    "linear [1, 8], no grad": {"op": "linear"},
    "linear [1, 8], autograd records": {"op": "linear", "grad": True},
}


def make(op: str, grad: bool = False) -> Workload:
    x, b = torch.randn(1, 8), torch.randn(8)
    w = (torch.randn(8, 8) if op == "linear" else torch.randn(8)).requires_grad_(grad)
    if op == "linear":
        return Workload(lambda: ops.linear(x, w, b), {"torch": lambda: functional.linear(x, w, b)})
    return Workload(
        lambda: ops.layer_norm(x, w, b, 1e-6), {"torch": lambda: functional.layer_norm(x, (8,), w, b, 1e-6)}
    )


def facts() -> dict[str, str]:
    """Printed below the table: seconds that ``import vision_accel`` takes in a new process."""
    code = "import time; t = time.perf_counter(); import vision_accel, sys; t = time.perf_counter() - t"
    code += "; assert 'torch' not in sys.modules; print(t)"
    runs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(7)
    ]
    return {
        "import vision_accel": f"{min(runs) * 1e3:.0f} ms (median {statistics.median(runs) * 1e3:.0f} ms)"
    }


@pytest.mark.parametrize("case", CASES)
def bench_overhead(measure, case):
    measure(make(**CASES[case]))
