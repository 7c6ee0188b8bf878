# SPDX-License-Identifier: Apache-2.0
"""Names the user may have meant."""

from collections.abc import Iterable
from difflib import SequenceMatcher


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """``"; did you mean 'optim.lr'?"`` with the up to 3 likely choices, or ``""`` when none is near.

    A choice with dots is also compared by its last part, so that ``lr`` finds ``optim.lr``.
    """

    def likeness(choice: str) -> float:
        leaf = choice.rpartition(".")[2]
        return max(SequenceMatcher(None, word.lower(), c.lower()).ratio() for c in {choice, leaf})

    ranked = sorted(((likeness(c), c) for c in dict.fromkeys(choices)), key=lambda pair: -pair[0])
    near = [c for score, c in ranked if score >= 0.65][:3]
    # One clear winner is better advice than three names.
    if near and ranked[0][0] >= 0.85 and (len(ranked) < 2 or ranked[1][0] < ranked[0][0] - 0.05):
        near = near[:1]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
