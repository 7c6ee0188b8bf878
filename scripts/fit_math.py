# SPDX-License-Identifier: Apache-2.0
"""Prints the coefficients of csrc/kernels/common/math.h and the largest relative error of each fit.

Every fit minimises the largest relative error on Chebyshev points by Lawson's iteration (least squares, with
weights multiplied by the error until it is level). The true values come from mpmath.
"""

from collections.abc import Callable

import mpmath as mp
import numpy as np

mp.mp.dps = 40
POINTS = 2001
ITERATIONS = 300


def chebyshev(low: float, high: float) -> np.ndarray:
    """The points in [low, high] on which a fit is judged."""
    return (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS)


def exact(f: Callable[[mp.mpf], mp.mpf], x: np.ndarray) -> np.ndarray:
    """Evaluate f at each x with 40 digits."""
    return np.array([float(f(mp.mpf(float(v)))) for v in x])


def least_squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The c that minimises |a c - b|, with columns scaled to one size."""
    scale = np.abs(a).max(0)
    return np.linalg.lstsq(a / scale, b, rcond=None)[0] / scale


def polynomial(name: str, basis: list[np.ndarray], truth: np.ndarray, weight: np.ndarray) -> None:
    """Minimise max |sum_k c_k basis_k - truth| * weight."""
    a, b, w = np.stack(basis, 1) * weight[:, None], truth * weight, np.full(POINTS, 1 / POINTS)
    best, found = np.inf, np.zeros(len(basis))
    for _ in range(ITERATIONS):
        c = least_squares(a * np.sqrt(w)[:, None], b * np.sqrt(w))
        error = np.abs(a @ c - b)
        if error.max() < best:
            best, found = error.max(), c
        w *= error
        w /= w.sum()
    print(f"{name}: error {best:.1e}\n  ", ", ".join(f"{v:.9g}" for v in found))


def quotient(name: str, x: np.ndarray, truth: np.ndarray, top: int, bottom: int) -> None:
    """Minimise the relative error of P(x) / (1 + Q(x)), the denominator lagging by one iteration."""
    w, q, best = np.full(POINTS, 1 / POINTS), np.ones(POINTS), np.inf
    found = np.zeros(top + 1 + bottom)
    for i in range(ITERATIONS):
        columns = [x**k / (truth * q) for k in range(top + 1)] + [-(x**k) / q for k in range(1, bottom + 1)]
        c = least_squares(np.stack(columns, 1) * np.sqrt(w)[:, None], np.sqrt(w) / q)
        q = 1 + sum(c[top + k] * x**k for k in range(1, bottom + 1))
        error = np.abs(sum(c[k] * x**k for k in range(top + 1)) / q / truth - 1)
        if error.max() < best:
            best, found = error.max(), c
        if i > 5:
            w *= error
            w /= w.sum()
    print(f"{name}: error {best:.1e}")
    print("   numerator  ", ", ".join(f"{v:.9g}" for v in found[: top + 1]))
    print("   denominator", ", ".join(f"{v:.9g}" for v in [1, *found[top + 1 :]]))


def main() -> None:
    """Print every fit."""
    r = chebyshev(-0.3466, 0.3466)
    polynomial(
        "exp(r) = 1 + r + r^2 q(r)",
        [r ** (k + 2) for k in range(5)],
        exact(lambda v: mp.expm1(v) - v, r),
        np.exp(-r),
    )
    r = chebyshev(-0.5001, 0.5001)
    polynomial("2^r = 1 + r q(r)", [r ** (k + 1) for k in range(6)], np.exp2(r) - 1, np.exp2(-r))
    f = chebyshev(np.sqrt(0.5) - 1, np.sqrt(2) - 1)
    polynomial(
        "log(1 + f) = f - f^2 / 2 + f^3 q(f)",
        [f ** (k + 3) for k in range(8)],
        exact(lambda v: mp.log1p(v) - v + v * v / 2, f),
        1 / np.abs(np.log1p(f)),
    )
    x = chebyshev(1e-4, 0.9)
    y = exact(lambda v: mp.erf(v) / v, x)
    polynomial("erf(x) = x q(x^2), x < 0.9", [x ** (2 * k) for k in range(7)], y, 1 / y)
    a = chebyshev(0, 14.5)
    tail = exact(lambda v: mp.exp(v * v / 2) * mp.erfc(v / mp.sqrt(2)) / 2, a)
    quotient("normal tail over exp(-a^2 / 2)", a, tail, 4, 5)


if __name__ == "__main__":
    main()
