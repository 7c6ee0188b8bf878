# SPDX-License-Identifier: Apache-2.0
"""How ``bench.cuda`` takes times: every case is checked first, and the implementations take turns.

A model is timed by CUDA events around enough calls to fill ``SAMPLE_MS``. An op is timed call by call, from
memory that is not in the GPU's caches.
"""

import statistics
from functools import cache
from typing import Any

import torch

from bench import common
from bench.common import OURS, Call, Workload
from bench.cuda_products import DEVICE, randn

SAMPLE_MS = 5.0
MOST_COLD = 20  # calls in a sample of an op


def _sample(call: Call, repeats: int, cold: bool = False) -> float:
    """Milliseconds of one call; ``cold``: each with nothing of its data in the caches."""
    if cold:
        return statistics.mean(_cold_samples(call, repeats))
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / repeats


def _cold_samples(call: Call, repeats: int) -> list[float]:
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in events:
        _other_data().zero_()  # takes longer than the CPU needs to launch the call behind it
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in events]


@cache
def _other_data() -> torch.Tensor:
    caches = torch.cuda.get_device_properties().L2_cache_size
    return torch.empty(max(8 * caches, 2**28), dtype=torch.uint8, device=DEVICE)


@cache
def copy_gbytes() -> float:
    """The rate of a large copy, bytes read and written, in 1e9."""
    a = randn(2**29)
    b = torch.empty_like(a)
    b.copy_(a)
    return 4e-6 * a.numel() / statistics.median(_sample(lambda: b.copy_(a), 5) for _ in range(5))


@cache
def peak_gflops() -> float:
    """The rate of a large bf16 product, on random data, in 1e9."""
    a, b = randn(8192, 8192), randn(8192, 8192)
    for _ in range(3):
        a @ b
    return 2e-6 * 8192**3 / statistics.median(_sample(lambda: a @ b, 5) for _ in range(5))


def measure(workload: Workload, use_peers: bool, rounds: int) -> dict[str, Any]:
    """Verify and time; the record of ``common.measure``."""
    others, absent = dict(workload.peers), {}
    if use_peers and workload.more_peers is not None:
        built, absent = workload.more_peers()
        others |= built
    got = workload.ours()  # once: a training step must be compared with the first step of the others
    for name in list(others):
        try:
            common.verify(lambda: got, {name: others[name]}, workload.tolerance)
        except RuntimeError as error:  # a back end that does not take this GPU or shape
            absent[name] = str(error).splitlines()[0]
            del others[name]
    calls, cold = {OURS: workload.ours, **others}, not workload.images
    repeats, samples = {}, {name: [] for name in calls}  # type: ignore[var-annotated]
    for name, call in calls.items():
        for _ in range(3):
            once = _sample(call, 1)
        repeats[name] = max(1, round(SAMPLE_MS / max(once, 1e-3)))
        if cold:
            repeats[name] = min(repeats[name], MOST_COLD)
    order = list(calls)
    for _ in range(rounds):
        for name in order:
            samples[name].append(_sample(calls[name], repeats[name], cold))
        order.reverse()
    ours = samples[OURS]
    results: dict[str, Any] = {}
    for name, times in samples.items():
        low, middle = min(times), statistics.median(times)
        results[name] = {
            "min_ms": low,
            "median_ms": middle,
            "rounds": rounds,
            "ratio_min": low / min(ours),
            "ratio_median": middle / statistics.median(ours),
        }
        if workload.flops:
            results[name]["gflops"] = workload.flops / middle * 1e-6
            results[name]["peak_share"] = workload.flops / middle * 1e-6 / peak_gflops()
        if workload.bytes:
            results[name]["gbytes"] = workload.bytes / middle * 1e-6
            results[name]["copy_share"] = workload.bytes / middle * 1e-6 / copy_gbytes()
        if workload.images:
            results[name]["images_per_s"] = workload.images / middle * 1e3
    return {"results": results, "absent": absent}
