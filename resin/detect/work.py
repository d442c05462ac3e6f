"""Growth against the work done: bytes per step, and memory that only follows the load."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .floor import block_minima
from .trend import theil_sen

Array = NDArray[np.float64]


@dataclass(frozen=True)
class WorkView:
    """What the job's own counter says of a growth.

    bytes_per_step: growth per unit of work, None without work. follows_load: the rate of work explains the level
    (R2 of a line) and what it leaves does not grow. idle_growth: share of the growth that came while no work was
    done, None when it never rested.
    """

    bytes_per_step: float | None
    follows_load: bool
    load_r2: float
    idle_growth: float | None


def against_work(
    t: Array, y: Array, work_t: ArrayLike, work: ArrayLike, *, start_s: float, end_s: float, windows: int = 48
) -> WorkView | None:
    """Compare the floor of y over [start_s, end_s] with cumulative `work`; None with too little of either.

    A counter that falls was restarted: its falls count as no work.
    """
    inside = (t >= start_s) & (t <= end_s)
    if np.count_nonzero(inside) < 12:
        return None
    windows = min(windows, int(np.count_nonzero(inside)) // 3)
    at, values = t[inside], y[inside]
    floor = block_minima(at, values, start_s, end_s, windows)
    moments = np.asarray(work_t, dtype=np.float64)
    counted = np.asarray(work, dtype=np.float64)
    known = np.isfinite(counted)
    if np.count_nonzero(known) < 4:
        return None
    moments, counted = moments[known], counted[known]
    done = np.concatenate(([0.0], np.cumsum(np.maximum(np.diff(counted), 0.0))))
    edges = np.linspace(start_s, end_s, windows + 1)
    reached = np.interp(edges, moments, done)
    rate = np.diff(reached)
    total = float(reached[-1] - reached[0])
    if total <= 0:
        return WorkView(None, False, 0.0, 1.0)
    middle = 0.5 * (reached[1:] + reached[:-1])
    per_step = theil_sen(middle, floor) if np.unique(middle).size >= 3 else None
    r2, rest_growth = _load(rate, floor)
    grown = np.diff(floor)
    idle = rate[1:] < 0.05 * float(np.median(rate[rate > 0]))
    rises = np.maximum(grown, 0.0)
    idle_share = None
    if np.count_nonzero(idle) >= 3 and rises.sum() > 0:
        idle_share = float(rises[idle].sum() / rises.sum())
    return WorkView(per_step, r2 >= 0.8 and rest_growth < 0.3, r2, idle_share)


def _load(rate: Array, floor: Array) -> tuple[float, float]:
    """(R2 of floor over rate, growth of what it leaves as a share of the floor's growth)."""
    if rate.std() <= 0.05 * max(float(rate.mean()), 1e-12) or floor.std() == 0:
        return 0.0, 1.0
    slope, level = np.polyfit(rate, floor, 1)
    if slope <= 0:
        return 0.0, 1.0
    rest = floor - (level + slope * rate)
    r2 = 1.0 - float(rest.var() / floor.var())
    third = max(1, floor.size // 3)
    growth = float(np.median(floor[-third:]) - np.median(floor[:third]))
    left = float(np.median(rest[-third:]) - np.median(rest[:third]))
    return r2, left / growth if growth > 0 else 1.0
