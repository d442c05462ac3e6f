"""Preparing many series at once: those of one length that never restarted go through NumPy as one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..model import Series
from .evidence import Window, block_count, shares_of, windows_of
from .floor import block_minima
from .segments import clean, judged_runs, without_glitches
from .silence import NONE, Silences, silences
from .thresholds import Thresholds

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prepared:
    """A cleaned series and its judged runs. `t` leaves long times without samples out (`silences`)."""

    series: Series
    t: Array
    y: Array
    runs: tuple[tuple[int, int], ...]
    silences: Silences = NONE

    @property
    def trace_s(self) -> float:
        """How long was looked at."""
        return float(self.t[-1] - self.t[0]) if self.t.size else 0.0


def prepare_many(batch: Sequence[Series], thresholds: Thresholds) -> tuple[list[Prepared], list[Window]]:
    """Each series cleaned and cut into runs, in order, and the windows of all of them."""
    by_length: dict[int, list[int]] = {}
    arrays = []
    for index, series in enumerate(batch):
        t = np.asarray(series.times_s, dtype=np.float64)
        y = np.asarray(series.values, dtype=np.float64)
        arrays.append((t, y))
        if t.shape == y.shape and t.ndim == 1 and t.size >= max(thresholds.min_points, 8):
            by_length.setdefault(t.size, []).append(index)
    found: dict[int, Prepared] = {}
    windows: list[Window] = []
    for indices in by_length.values():
        if len(indices) > 1:
            times, values = (np.stack([arrays[i][part] for i in indices]) for part in (0, 1))
            plain = _plain(times, values, thresholds)
            chosen = [indices[row] for row in np.flatnonzero(plain)]
            times, values = times[plain], values[plain]
            for row, i in enumerate(chosen):
                found[i] = Prepared(batch[i], times[row], values[row], ((0, times.shape[1]),))
            if chosen:
                windows.extend(_windows(chosen, times, values, thresholds))
    for index, series in enumerate(batch):
        if index not in found:
            found[index] = _alone(index, series, *arrays[index], thresholds, windows)
    return [found[index] for index in range(len(batch))], windows


def _alone(
    index: int, series: Series, t: Array, y: Array, thresholds: Thresholds, windows: list[Window]
) -> Prepared:
    t, y = without_glitches(*clean(t, y))
    quiet = silences(t, thresholds)
    if quiet.after_s.size:
        t = quiet.seen(t)
    one_process = series.entity.is_one_process
    runs: tuple[tuple[int, int], ...] = ()
    if y.size >= thresholds.min_points:
        runs = tuple(judged_runs(t, y, thresholds, one_process=one_process))
    for run, (a, b) in enumerate(runs):
        warms_up = a > 0 or y[0] < 0.5 * float(y[a:b].mean())
        windows.extend(windows_of(index, run, t[a:b], y[a:b], thresholds, warms_up=warms_up))
    return Prepared(series, t, y, runs, quiet)


def _plain(times: Array, values: Array, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Rows with nothing to clean, no long gap, and no fall that could be a restart, a glitch or an end."""
    with np.errstate(invalid="ignore"):
        steps = np.diff(times, axis=1)
        ascending = (steps > 0).all(axis=1)
        unbroken = steps.max(axis=1) <= 0.05 * (times[:, -1] - times[:, 0])
        finite = np.isfinite(times).all(axis=1) & np.isfinite(values).all(axis=1)
        no_fall = values.min(axis=1) >= max(thresholds.restart_ratio, 0.5) * values.max(axis=1)
        goes_on = values[:, -1] >= 0.8 * values[:, -7:].max(axis=1)
        return ascending & unbroken & finite & no_fall & goes_on & (values[:, 0] > 0)


def _windows(indices: list[int], times: Array, values: Array, thresholds: Thresholds) -> list[Window]:
    made = []
    n = times.shape[1]
    for share in shares_of(n, warms_up=False):
        points = int(n * share)
        count = block_count(points, thresholds)
        tail_t, tail_y = times[:, n - points :], values[:, n - points :]
        floors = _block_minima(tail_t, tail_y, count)
        for row, index in enumerate(indices):
            start, end = float(tail_t[row, 0]), float(tail_t[row, -1])
            made.append(Window(index, 0, share, start, end, points, floors[row]))
            if count >= 32:
                made.append(Window(index, 0, share, start, end, points, floors[row], drift=True))
    return made


def _block_minima(times: Array, values: Array, count: int) -> Array:
    """`floor.block_minima` of each row; rows sampled at the same relative times share one pass."""
    start, end = times[:, :1], times[:, -1:]
    block = np.minimum(
        ((times - start) * (count / np.maximum(end - start, 1e-12))).astype(np.int64), count - 1
    )
    floors = np.empty((times.shape[0], count))
    alike = (block == block[0]).all(axis=1)
    first = np.flatnonzero(np.concatenate(([True], block[0, 1:] != block[0, :-1])))
    if first.size == count:
        floors[alike] = np.minimum.reduceat(values[alike], first, axis=1)
    else:
        alike[:] = False
    for row in np.flatnonzero(~alike):
        floors[row] = block_minima(times[row], values[row], float(start[row, 0]), float(end[row, 0]), count)
    return floors
