# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.tune``: measures the tiles of linear on this GPU and writes what beats the rule.

The result is ``csrc/kernels/linear/linear_tiles_measured.h``: rebuild to use it, commit it to ship it. The
entries of other GPUs in it stay. Times are of CUDA graphs of many calls, so that launches do not count.
"""

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from vision_accel import _C, ops

TABLE = Path(__file__).parents[1] / "csrc/kernels/linear/linear_tiles_measured.h"
CHOICES = ("sm80_large", "sm80_small", "sm90_large", "sm90_medium")
WORTH = 0.97  # a tile must take at most this share of the rule's time


@dataclass(frozen=True)
class Product:
    """What a GEMM multiplies: kk is y = x w^T, km is dx = dz w, mm is dw = dz^T x."""

    form: str
    m: int
    n: int
    k: int


@dataclass(frozen=True)
class Entry:
    """A line of the table."""

    capability: int
    processors: int
    product: Product
    best: str

    def text(self) -> str:
        """The line as C++."""
        p = self.product
        head = f"{self.capability}, {self.processors}, Major::{p.form}"
        return f"    {{{head}, {p.m}, {p.n}, {p.k}, Choice::{self.best}}},"


def products() -> list[Product]:
    """The products of ViT and CLIP: forward, by the input and by the weight."""
    found = []
    # Towers by width and tokens.
    for width, tokens in ((384, 197), (768, 197), (768, 50), (768, 77), (1024, 197), (1024, 257)):
        for batch in (1, 8, 64, 256):
            rows = tokens * batch
            layers = ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))
            for outputs, inputs in layers:
                found.append(Product("kk", rows, outputs, inputs))
                if batch >= 64:  # training
                    found.append(Product("km", rows, inputs, outputs))
                    found.append(Product("mm", outputs, inputs, rows))
    return list(dict.fromkeys(found))


def tune(
    wanted: Iterable[Product],
    time: Callable[[Product, str], float],
    choices: Iterable[str],
    capability: int,
    processors: int,
) -> list[Entry]:
    """The entries that beat the rule. ``time(product, choice)`` measures; choice "" is the rule's."""
    entries = []
    for product in wanted:
        rule = time(product, "")
        times = {choice: time(product, choice) for choice in choices}
        best = min(times, key=times.__getitem__)
        if times[best] <= WORTH * rule:
            entries.append(Entry(capability, processors, product, best))
    return entries


def write(entries: list[Entry], path: Path) -> None:
    """Put the entries into the table in place of those of the same GPU."""
    text = path.read_text()
    begin = text.index("{\n", text.index("kMeasured")) + 2
    end = text.index("};", begin)
    ours = {(e.capability, e.processors) for e in entries}
    kept = []
    for line in text[begin:end].splitlines():
        numbers = re.match(r"\s*\{(\d+), (\d+),", line)
        if numbers and (int(numbers[1]), int(numbers[2])) not in ours:
            kept.append(line)
    lines = [*kept, *(e.text() for e in entries)] or ["    {},"]
    path.write_text(text[:begin] + "\n".join(lines) + "\n" + text[end:])


def measure(product: Product, choice: str) -> float:
    """Milliseconds of one product with this tile, in bfloat16."""
    p = product
    rows, outputs, inputs = {"kk": (p.m, p.n, p.k), "km": (p.m, p.k, p.n), "mm": (p.k, p.m, p.n)}[p.form]

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda").bfloat16()

    stream = torch.cuda.Stream()  # of the capture too: gradients are computed on that of their forward pass
    _C.linear_force_tile(choice)
    try:
        with torch.cuda.stream(stream):
            x, weight = randn(rows, inputs), randn(outputs, inputs)
            if p.form == "kk":
                call: Callable[[], object] = lambda: ops.linear(x, weight)  # noqa: E731
            else:
                leaf = x if p.form == "km" else weight
                leaf.requires_grad_()
                y, dy = ops.linear(x, weight), randn(rows, outputs)
                call = lambda: torch.autograd.grad(y, leaf, dy, retain_graph=True)  # noqa: E731
            call()  # loads the kernel
        graph = torch.cuda.CUDAGraph()
        repeats = max(4, min(100, int(2e12 / (2.0 * p.m * p.n * p.k))))
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(repeats):
                call()
    finally:
        _C.linear_force_tile("")
    graph.replay()
    samples = []
    for _ in range(5):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end) / repeats)
    return statistics.median(samples)


def main() -> int:
    """Tune for the GPU of this machine."""
    parser = argparse.ArgumentParser(prog="python -m bench.tune", description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE, help="the file to write")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU on this machine: nothing was measured", file=sys.stderr)
        return 1
    gpu = torch.cuda.get_device_properties(0)
    choices = CHOICES if gpu.major == 9 else CHOICES[:2]

    def shown(product: Product, choice: str) -> float:
        time = measure(product, choice)
        print(f"{product}  {choice or 'rule':12} {time:.4f} ms", flush=True)
        return time

    entries = tune(products(), shown, choices, gpu.major, gpu.multi_processor_count)
    write(entries, args.table)
    print(f"{len(entries)} entries for {gpu.name} in {args.table}: build again to use them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
