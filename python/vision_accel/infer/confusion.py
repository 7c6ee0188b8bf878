# SPDX-License-Identifier: Apache-2.0
"""A picture of which classes are taken for which."""

from collections.abc import Sequence
from typing import IO

import numpy as np


def draw_confusion(
    truth: Sequence[str], found: Sequence[str], labels: Sequence[str], title: str, file: IO[bytes]
) -> None:
    """Write a PNG of the confusion matrix: rows are true labels, columns those found."""
    from matplotlib.figure import Figure  # noqa: PLC0415  slow to import

    number = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)))
    for a, b in zip(truth, found, strict=True):
        if b in number:
            counts[number[a], number[b]] += 1
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    side = min(24.0, max(5.0, 0.32 * len(labels) + 2.5))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(labels) <= 60:
        axes.set_xticks(range(len(labels)), labels, rotation=90)
        axes.set_yticks(range(len(labels)), labels)
    if len(labels) <= 20:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[i, j] > 0.5 else "black"
                axes.text(j, i, str(int(count)), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xlabel("found")
    axes.set_ylabel("true")
    axes.set_title(title)
    figure.savefig(file, format="png", dpi=110)
