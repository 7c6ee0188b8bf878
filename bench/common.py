# SPDX-License-Identifier: Apache-2.0
"""What every benchmark shares: the workload, the correctness check, interleaved timing, the table.

A benchmark file ``bench/<folder>/bench_<name>.py`` holds

* ``CASES``: name -> keyword arguments of ``make``, real model shapes;
* ``make(**kwargs) -> Workload``: our call, the same call in torch, and how much work it is;
* one pytest function that hands a case to the ``measure`` fixture (see ``bench/ops/bench_layer_norm.py``).
"""

import ctypes
import gc
import importlib
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vision_accel import _C

ROOT = Path(__file__).parent
OURS = "vision_accel"
Call = Callable[[], Any]


class Mismatch(AssertionError):
    """Two implementations disagree, so their times mean nothing."""


@dataclass(frozen=True)
class Workload:
    """One thing to time.

    Attributes:
        ours: runs our implementation once and returns its output.
        peers: the same work done by others; always timed.
        more_peers: builds costly peers (compilers, other engines); called only with ``--peers``.
            Returns the built ones, and for each absent one the reason.
        flops: floating-point operations of one call.
        bytes: memory read and written by one call, for bandwidth-bound ops.
        images: images per call.
        tolerance: allowed difference of outputs, as a share of the largest reference value.
            None when the outputs are not comparable (then say why beside it).
    """

    ours: Call
    peers: Mapping[str, Call] = field(default_factory=dict)
    more_peers: Callable[[], tuple[dict[str, Call], dict[str, str]]] | None = None
    flops: float = 0
    bytes: float = 0
    images: int = 0
    tolerance: float | None = 1e-4


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one implementation, and the memory that one call adds at its peak."""

    samples: list[float]
    peak_bytes: int | None = None

    @property
    def min(self) -> float:
        return min(self.samples)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


# Discovery ----------------------------------------------------------------------------------------------


def names() -> list[str]:
    """All benchmarks, as ``python -m bench`` takes them: ``ops/layer_norm``, ``models/vit``, ``overhead``."""
    files = sorted(ROOT.rglob("bench_*.py"))
    return [str(f.relative_to(ROOT).with_name(f.stem.removeprefix("bench_"))) for f in files]


def load(name: str) -> Any:
    """The module of the benchmark ``name``."""
    *folder, last = name.split("/")
    return importlib.import_module(".".join(["bench", *folder, f"bench_{last}"]))


# Correctness --------------------------------------------------------------------------------------------


def _arrays(output: Any) -> list[np.ndarray[Any, Any]]:
    if isinstance(output, torch.Tensor):
        return [output.detach().cpu().double().numpy()]
    if isinstance(output, (list, tuple)):
        return [a for item in output for a in _arrays(item)]
    return [np.asarray(output, dtype=np.float64)]


def verify(ours: Call, peers: Mapping[str, Call], tolerance: float | None) -> None:
    """Run everything once; raise ``Mismatch`` when an output differs from ours by more than allowed."""
    got = _arrays(ours())
    for name, peer in peers.items():
        expected = _arrays(peer())
        if tolerance is None:
            continue
        if [a.shape for a in got] != [a.shape for a in expected]:
            shapes = [a.shape for a in got], [a.shape for a in expected]
            raise Mismatch(f"{OURS} and {name} return different shapes: {shapes[0]} and {shapes[1]}")
        for g, e in zip(got, expected, strict=True):
            if g.size == 0:
                continue
            error, allowed = np.abs(g - e).max(), tolerance * np.abs(e).max() + 1e-12
            if not error <= allowed:
                raise Mismatch(f"{OURS} and {name} differ by {error:.2e}, allowed {allowed:.2e}")


# Timing -------------------------------------------------------------------------------------------------

SAMPLE_SECONDS = 2e-3  # a sample lasts at least this long: short calls are repeated in it
SETTLE_SECONDS = 5e-3  # other engines' threads spin for a while after their last call


def interleave(calls: Mapping[str, Call], seconds: float = 2.0, min_rounds: int = 5) -> dict[str, Timing]:
    """Time ``calls`` in turn, one sample each per round, so that a drifting machine hits all alike.

    Runs for about ``seconds`` per call and at least ``min_rounds`` rounds. The order is reversed in
    every second round.
    """
    repeats, peaks = {}, {}
    for name, call in calls.items():
        peaks[name] = peak_memory(call)  # also the warm-up
        once = min(_sample(call, 1) for _ in range(3))
        repeats[name] = max(1, round(SAMPLE_SECONDS / max(once, 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    end = time.perf_counter() + seconds * len(calls)
    gc.collect()
    gc.disable()
    try:
        while len(samples[order[0]]) < min_rounds or time.perf_counter() < end:
            for name in order:
                time.sleep(SETTLE_SECONDS)
                if not samples[name] or samples[name][-1] < 0.1:
                    calls[name]()  # brings its data back into the caches and wakes its threads
                samples[name].append(_sample(calls[name], repeats[name]))
            order.reverse()
    finally:
        gc.enable()
    return {name: Timing(samples[name], peaks[name]) for name in calls}


def _sample(call: Call, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def peak_memory(call: Call) -> int | None:
    """Bytes by which the resident set grows at its peak while ``call`` runs once; None if not on Linux."""

    def status(key: str) -> int:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
        return int(line.split()[1]) * 1024

    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed must not hide what this one takes
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = status("VmRSS")
        call()
        return max(0, status("VmHWM") - before)
    except (OSError, AttributeError):
        call()
        return None


@cache
def peak_gflops() -> float:
    """Fused multiply-adds per second, times two, that this machine does on all threads now, in 1e9."""
    if hasattr(_C, "fma_peak"):
        return float(max(_C.fma_peak() for _ in range(3)))
    n = 1536  # a large matmul comes close
    a, b = torch.randn(n, n), torch.randn(n, n)
    return 2e-9 * n**3 / min(_sample(lambda: a @ b, 1) for _ in range(10))


# Results ------------------------------------------------------------------------------------------------


def measure(workload: Workload, *, peers: bool, seconds: float) -> dict[str, Any]:
    """Verify, then time one workload; returns a JSON-ready record."""
    others, absent = dict(workload.peers), {}
    if peers and workload.more_peers is not None:
        built, absent = workload.more_peers()
        others |= built
    verify(workload.ours, others, workload.tolerance)
    timings = interleave({OURS: workload.ours, **others}, seconds)
    ours = timings[OURS]
    results = {}
    for name, t in timings.items():
        results[name] = {
            "min_ms": t.min * 1e3,
            "median_ms": t.median * 1e3,
            "rounds": len(t.samples),
            "ratio_min": t.min / ours.min,  # above 1: we are faster
            "ratio_median": t.median / ours.median,
        }
        if workload.flops:
            results[name]["gflops"] = workload.flops / t.min * 1e-9
            results[name]["peak_share"] = workload.flops / t.min * 1e-9 / peak_gflops()
        if workload.bytes:
            results[name]["gbytes"] = workload.bytes / t.min * 1e-9
        if workload.images:
            results[name]["images_per_s"] = workload.images / t.min
            results[name]["peak_mb"] = None if t.peak_bytes is None else t.peak_bytes / 2**20
    return {"results": results, "absent": absent}


COLUMNS: Sequence[tuple[str, str, str]] = (
    # heading, key, format
    ("min ms", "min_ms", ".4g"),
    ("median ms", "median_ms", ".4g"),
    ("images/s", "images_per_s", ".1f"),
    ("GFLOP/s", "gflops", ".1f"),
    ("% of peak", "peak_share", ".0%"),
    ("GB/s", "gbytes", ".1f"),
    ("% of a copy", "copy_share", ".0%"),
    ("MB per call", "peak_mb", ".1f"),
    ("time / ours (min)", "ratio_min", ".2f"),
    ("(median)", "ratio_median", ".2f"),
)


def table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table of the records of ``measure``, by case name, without the columns that nobody fills."""
    results = [r for record in records.values() for r in record["results"].values()]
    columns = [c for c in COLUMNS if any(r.get(c[1]) is not None for r in results)]
    rows = [["case", "implementation", *(heading for heading, _, _ in columns)]]
    for case, record in records.items():
        for i, (name, r) in enumerate(record["results"].items()):
            cells = [format(r[key], form) if r.get(key) is not None else "" for _, key, form in columns]
            rows.append([case if i == 0 else "", name, *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("| " + " | ".join(cells) + " |")
    rule = [("-" * w if i < 2 else "-" * (w - 1) + ":") for i, w in enumerate(widths)]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    absent = {name: why for record in records.values() for name, why in record["absent"].items()}
    lines += [f"{name} was skipped: {why}" for name, why in absent.items()]
    return "\n".join(lines)


def environment() -> dict[str, Any]:
    """Where and on what the numbers were taken."""
    cpu = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        cpu = next(
            (x.split(":")[1].strip() for x in cpuinfo.read_text().splitlines() if "model name" in x), cpu
        )
    versions = {}
    for package in ("vision-accel", "torch", "openvino", "onnxruntime", "timm", "numpy", "pillow"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "device": cpu,
        "cores": os.cpu_count(),
        "isa": _C.active_isa(),
        "threads": torch.get_num_threads(),
        "threading": _C.threading_backend(),
        "peak_gflops": round(peak_gflops(), 1),
        "python": sys.version.split()[0],
        "versions": versions,
        "commit": git.stdout.strip() or "unknown",
    }
