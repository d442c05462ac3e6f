"""The floor of a series: block minima, and the memory that was never given back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def block_minima(t: Array, y: Array, start_s: float, end_s: float, windows: int) -> Array:
    """Lowest value in each of `windows` equal parts of [start_s, end_s]; shape (windows,).

    A part without samples takes the straight line between its neighbours.
    """
    if y.size == 0:
        raise ValueError("block_minima needs at least one sample")
    span = max(end_s - start_s, 1e-12)
    index = np.minimum(((t - start_s) * (windows / span)).astype(np.int64), windows - 1)
    first = np.flatnonzero(np.concatenate(([True], index[1:] != index[:-1])))
    held = index[first]
    lowest = np.minimum.reduceat(y, first)
    if held.size == windows:
        return lowest
    return np.interp(np.arange(windows), held, lowest)


def kept(floor: Array, tail: int) -> Array:
    """What was never given back: at each window the minimum of the floor from there to the end.

    floor: shape (..., W). The last `tail` windows only confirm: the result has W - tail + 1 columns, so a rise
    that appears in the tail alone does not count. Non-decreasing along the last axis.
    """
    future = np.minimum.accumulate(floor[..., ::-1], axis=-1)[..., ::-1]
    return future[..., : floor.shape[-1] - tail + 1]


def largest_fall(t: Array, y: Array, start_s: float, end_s: float, length_s: float) -> float | None:
    """Largest fall of the floor within `length_s` anywhere in [start_s, end_s); None with under 20 samples.

    What the series has given back before, it may give back again: the yardstick of a rise of that length.
    """
    before = t < end_s
    n = int(np.count_nonzero(before))
    if n < 20 or end_s <= start_s:
        return None
    windows = int(np.clip(n // 4, 8, 96))
    floor = block_minima(t[before], y[before], start_s, end_s, windows)
    width = (end_s - start_s) / windows
    smooth = min(max(1, int(round(0.15 * length_s / width))), windows - 1)
    rolled = np.lib.stride_tricks.sliding_window_view(floor, smooth).min(axis=1)
    lag = min(max(1, int(round(length_s / width))), rolled.size - 1)
    if lag < 1:
        return None
    padded = np.concatenate([rolled, np.full(lag, np.inf)])
    lowest_ahead = np.lib.stride_tricks.sliding_window_view(padded, lag + 1)[: rolled.size].min(axis=1)
    return float((rolled - lowest_ahead).max())


def onset(
    t: Array,
    y: Array,
    *,
    slope_per_s: float,
    from_s: float,
    to_s: float,
    tolerance_s: float,
    windows: int = 96,
) -> float:
    """When a growth that was seen from `from_s` to `to_s` began: its line is followed back along the floor.

    The line may be missed by what it gains in `tolerance_s` plus three times the noise around it. It ends where the
    floor leaves it for good: at a level before the growth, or at the step of something else.
    """
    floor = block_minima(t, y, float(t[0]), float(t[-1]), windows)
    width = float(t[-1] - t[0]) / windows
    at = float(t[0]) + (np.arange(windows) + 0.5) * width
    rest = floor - slope_per_s * at
    seen = (at >= from_s) & (at <= to_s)
    if not seen.any() or slope_per_s <= 0:
        return from_s
    level = float(np.median(rest[seen]))
    noise = 1.4826 * float(np.median(np.abs(rest[seen] - level)))
    tolerance = slope_per_s * tolerance_s + 3.0 * noise
    first = int(np.flatnonzero(seen)[0])
    earliest, below, on_line = first, 0, 0
    for i in range(first - 1, -1, -1):
        above = rest[i] - level
        below = below + 1 if above < -tolerance else 0
        on_line = on_line + 1 if abs(above) <= tolerance else 0
        if below == 3:
            break  # memory that is not given back cannot have been below its own line
        if on_line >= 2:  # load stands above the line and comes back to it
            earliest = i
    if earliest == 0:
        return float(t[0])
    # A level before the growth leaves the line only once the tolerance is used up.
    late = min(tolerance / slope_per_s, tolerance_s) if rest[earliest - 1] > level else 0.0
    return float(min(from_s, at[earliest] - 0.5 * width + late))
