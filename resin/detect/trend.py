"""Robust slope and trend test: Theil-Sen, Mann-Kendall with autocorrelation taken into account."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@lru_cache(maxsize=64)
def _pairs(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.triu_indices(n, k=1)


def theil_sen(x: Array, y: Array) -> float:
    """Median of all pairwise slopes of y over x; unit of y per unit of x. Needs two distinct x."""
    i, j = _pairs(x.size)
    run = x[j] - x[i]
    usable = run > 0
    if not usable.any():
        raise ValueError("theil_sen needs at least two distinct x")
    return float(np.median((y[j] - y[i])[usable] / run[usable]))


def mann_kendall(y: Array) -> tuple[float, float]:
    """(tau, p) of the one-sided test against a rising trend.

    The variance of S is inflated for autocorrelation after Hamed and Rao (1998): the autocorrelation of the
    ranks of the detrended series, at the lags where it is significant at 5 %. Under four points p is 1.
    """
    n = y.size
    if n < 4:
        return 0.0, 1.0
    i, j = _pairs(n)
    s = float(np.sign(y[j] - y[i]).sum())
    pairs = n * (n - 1) / 2.0
    _, ties = np.unique(y, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18.0
    if variance <= 0:
        return 0.0, 1.0
    at = np.arange(n, dtype=np.float64)
    residual = y - theil_sen(at, y) * at
    ranks = np.argsort(np.argsort(residual, kind="stable"), kind="stable").astype(np.float64)
    ranks -= ranks.mean()
    # Ranks of what rounding has left of a perfect line would look like a slow wave.
    exact = float(residual.std()) <= 1e-9 * float(np.abs(y).max())
    power = 0.0 if exact else float((ranks * ranks).sum())
    correction = 0.0
    if power > 0:
        bound = 1.96 / math.sqrt(n)
        for lag in range(1, max(2, n // 2)):
            r = float((ranks[:-lag] * ranks[lag:]).sum()) / power
            if abs(r) > bound:
                correction += (n - lag) * (n - lag - 1) * (n - lag - 2) * r
    factor = 1.0 + 2.0 * correction / (n * (n - 1.0) * (n - 2.0))
    variance *= max(factor, 1.0)  # negative autocorrelation must not make a trend more certain
    z = (s - math.copysign(1.0, s)) / math.sqrt(variance) if s else 0.0
    return s / pairs, 0.5 * math.erfc(z / math.sqrt(2.0))
