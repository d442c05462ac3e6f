"""From a raw series to the runs of one process each: clean, cut at restarts, find falls."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .thresholds import DEFAULT, Thresholds

Array = NDArray[np.float64]


def clean(times_s: ArrayLike, values: ArrayLike) -> tuple[Array, Array]:
    """Ascending distinct times with finite values; of several values at one time the lowest is kept.

    The lowest, because only the floor of a series is evidence of memory that is not given back.
    Raises ValueError when the two differ in length.
    """
    t = np.asarray(times_s, dtype=np.float64)
    y = np.asarray(values, dtype=np.float64)
    if t.shape != y.shape or t.ndim != 1:
        raise ValueError(
            f"times and values must be two lists of one length, got shapes {t.shape} and {y.shape}"
        )
    finite = np.isfinite(t) & np.isfinite(y)
    if not finite.all():
        t, y = t[finite], y[finite]
    if t.size < 2:
        return t, y
    steps = np.diff(t)
    if steps.min() > 0:
        return t, y
    if steps.min() < 0:
        order = np.argsort(t, kind="stable")
        t, y = t[order], y[order]
    first = np.flatnonzero(np.concatenate(([True], t[1:] > t[:-1])))
    return t[first], np.minimum.reduceat(y, first)


def restarts(y: Array, *, ratio: float = DEFAULT.restart_ratio) -> list[tuple[int, int]]:
    """Half-open index ranges of the runs between restarts.

    A restart is a fall below `ratio` of the median of the five samples before. A garbage collection that
    returns less than half is no restart; where the identity (pid, start time) is known, it settles the rest
    (`judged_runs`).
    """
    n = y.size
    if n == 0:
        return []
    # A fall below the ratio of a five-sample median needs a fall below the ratio of their maximum.
    window_max = y[:-1].copy()
    for lag in range(1, 5):
        window_max[lag:] = np.maximum(window_max[lag:], y[: n - 1 - lag] if lag < n - 1 else window_max[lag:])
    suspects = np.flatnonzero(y[1:] < ratio * window_max) + 1
    cuts = [0]
    for i in suspects:
        recent = y[max(cuts[-1], i - 5) : i]
        if recent.size and y[i] < ratio * float(np.median(recent)):
            cuts.append(int(i))
    cuts.append(n)
    return list(zip(cuts[:-1], cuts[1:]))


def without_glitches(t: Array, y: Array, *, ratio: float = DEFAULT.restart_ratio) -> tuple[Array, Array]:
    """The series without falls of one or two samples that come back to the level they left.

    A process that starts again does not reach the level of the old one within two samples: such a fall is a
    mistake of the measurement (a scrape in the middle of a restart of the exporter, a counter that was not there).
    """
    if y.size < 5:
        return t, y
    keep = np.ones(y.size, dtype=bool)
    for i in np.flatnonzero(y[1:] < ratio * y[:-1]) + 1:
        before = y[i - 1]
        for width in (1, 2):
            if i + width < y.size and y[i : i + width].max() < ratio * before and y[i + width] > 0.9 * before:
                keep[i : i + width] = False
                break
    return (t, y) if keep.all() else (t[keep], y[keep])


def judged_runs(
    t: Array, y: Array, thresholds: Thresholds = DEFAULT, *, one_process: bool = False
) -> list[tuple[int, int]]:
    """The runs long enough to be judged, in order of time.

    A fall of memory of `one_process` is no restart, however deep: it was trimmed, collected or given back.
    """
    least = max(thresholds.min_points, int(thresholds.min_segment_share * t.size))
    y = y[: y.size - _ending(y)]
    if one_process:
        return [(0, y.size)] if y.size >= least else []
    return [(a, b) for a, b in restarts(y, ratio=thresholds.restart_ratio) if b - a >= least]


def _ending(y: Array) -> int:
    """How many of the last two samples belong to a process on its way out: a fall by a fifth or more.

    Were it a free() instead, the samples to come will show it.
    """
    if y.size < 7 or y[-1] >= 0.8 * y[-7:].max():  # the common case, without a median
        return 0
    for last in (2, 1):
        if y.size > 5 + last:
            usual = float(np.median(y[-5 - last : -last]))
            if (y[-last:] < 0.8 * usual).all():
                return last
    return 0


def quantiles(y: Array, *shares: float) -> tuple[float, ...]:
    """Nearest-rank quantiles; of thousands of series a day, np.percentile would be most of the cost."""
    ordered = np.sort(y)
    return tuple(float(ordered[round(share * (y.size - 1))]) for share in shares)


def big_falls(y: Array, share: float = 0.5) -> int:
    """Number of falls by at least `share` of the range within three samples: teeth of a saw."""
    if y.size < 4:
        return 0
    low, high = quantiles(y, 0.02, 0.98)
    span = high - low
    if span <= 0:
        return 0
    fell = (y[:-3] - y[3:]) >= share * span
    return int(np.count_nonzero(fell[1:] & ~fell[:-1]) + int(fell[0]))


def is_saw(y: Array, least: float) -> bool:
    """Falls of `least` or more within three samples, and no rise half as sharp: memory is collected in steps."""
    if y.size < 4:
        return False
    moved = y[3:] - y[:-3]
    fall, rise = float(-moved.min()), float(moved.max())
    return fall >= least and rise < 0.5 * fall
