# SPDX-License-Identifier: Apache-2.0
"""A picture of a run's metrics."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Plot loss, learning rate and, where there are evaluations, accuracy against the epoch.

    Args:
        records: lines of metrics.jsonl.
        path: the PNG file to write.
    """
    accuracies = [n for n in ("eval_top1", "eval_top5") if any(r.get(n) is not None for r in records)]
    columns = 3 if accuracies else 2
    figure = Figure(figsize=(5 * columns, 4))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns)
    figure.subplots_adjust(left=0.16 / columns, right=1 - 0.06 / columns, bottom=0.13, top=0.9, wspace=0.2)
    _plot(axes[0], records, {"loss": "training", "eval_loss": "evaluation"}, "loss")
    _plot(axes[1], records, {"lr": ""}, "learning rate")
    if accuracies:
        _plot(axes[2], records, {n: n.replace("eval_top", "top-") for n in accuracies}, "accuracy")
        axes[2].set_ylim(top=1.01)
    figure.savefig(path, dpi=120, format="png")


def _plot(axis: Any, records: list[dict[str, Any]], names: dict[str, str], title: str) -> None:
    for name, label in names.items():
        points = [(r["epoch"], r[name]) for r in records if r.get(name) is not None and "epoch" in r]
        if points:
            marker = "o" if name.startswith("eval") else None
            axis.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3, linewidth=1.2)
    axis.set_title(title)
    axis.set_xlabel("epoch")
    axis.grid(alpha=0.3)
    if len(axis.get_lines()) > 1:
        axis.legend()
