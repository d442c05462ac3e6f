"""When a growth began: every block of the floor votes whether it rose as the leak does or as before."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .floor import block_minima

Array = NDArray[np.float64]
_BLOCKS = (128, 64, 32)
_LEAST = 16  # blocks; fewer have no vote worth counting
_LAGS = (1, 2, 4)
_AGREED = 0.5  # of the votes: the finest view that reaches it decides
_LEAST_AGREED = 0.3  # below, the votes say nothing
_SAME = 0.9  # of the slope: what rose this fast before is the same growth; both are known to a tenth at best
_LEAST_MEDIAN = 0.5  # of the slope: rise of the median block of the growth
_TIE = 0.5  # votes: breaks this close to the best are as good, and their middle is taken


def began(t: Array, y: Array, *, slope_per_s: float, from_s: float, to_s: float) -> float | None:
    """Time at which a growth of `slope_per_s`, seen over [from_s, to_s], began; None with too few samples.

    Rises of the floor over a lag of a few blocks are compared with the slope of the leak and with what was usual
    before. A jump (load, deploy, restart) is far from both and has no say, so a leak is followed back over restarts.
    Load that flickers, a saw's teeth and stairs need wider blocks or a longer lag: the finest view whose votes
    agree decides, else the one where they agree best.
    """
    seen = t <= to_s
    t, y = t[seen], y[seen]
    if y.size < 3 * _LEAST or slope_per_s <= 0:
        return None
    start_s, end_s = float(t[0]), float(t[-1])
    best: tuple[float, float | None] = (_LEAST_AGREED, None)
    for most in _BLOCKS:
        blocks = min(most, y.size // 3)
        width = (end_s - start_s) / blocks
        floor = block_minima(t, y, start_s, end_s, blocks)
        first = min(max(0, int((from_s - start_s) / width)), blocks - 4)
        for lag in _LAGS:
            if lag > blocks // 8:
                break
            rise = (floor[lag:] - floor[:-lag]) / lag
            slope = _quiet_slope(rise[first:], slope_per_s * width)
            agreement, begin = _vote(rise, slope, first)
            if begin > rise.size - 3 or np.median(rise[begin:]) < _LEAST_MEDIAN * slope:
                continue  # the growth sits in few of the blocks: stairs
            if agreement > best[0]:
                best = agreement, start_s if begin <= 1 else start_s + (begin + 0.5 * lag) * width
            if best[0] >= _AGREED:
                return best[1]
    return best[1]


def _quiet_slope(rise: Array, slope: float) -> float:
    """The usual rise within the growth where most rises are alike: jumps bend a line through all of it."""
    if rise.size < 8:
        return slope
    usual = float(np.median(rise))
    return usual if usual > 0 and np.mean(np.abs(rise - usual) < 0.3 * usual) >= 0.6 else slope


def _vote(rise: Array, slope: float, first: int) -> tuple[float, int]:
    """(share of the votes that agree with the break, less those that do not; block of the break)."""
    begin, usual, gap = min(first, rise.size - 2), 0.0, slope
    votes = np.zeros(rise.size)
    for _ in range(3):
        usual = float(np.clip(np.median(rise[:begin]), -0.5 * slope, slope)) if begin >= 4 else 0.0
        if usual > _SAME * slope:
            usual, begin = 0.0, 0
            votes = np.minimum(np.abs(rise), slope) - np.minimum(np.abs(rise - slope), slope)
            gap = slope
            break
        gap = slope - usual
        votes = np.minimum(np.abs(rise - usual), gap) - np.minimum(np.abs(rise - slope), gap)
        after = np.concatenate([np.cumsum(votes[::-1])[::-1], [0.0]])
        begin = int(round(np.flatnonzero(after >= after.max() - _TIE * gap).mean()))
    agreement = (votes[begin:].sum() - votes[:begin].sum()) / (gap * rise.size)
    return float(agreement), begin
