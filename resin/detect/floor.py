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


def onset(t: Array, y: Array, slope_per_s: float, windows: int = 96) -> float:
    """When a growth of known slope began: the time c for which `level + slope * max(0, t - c)` fits the floor best.

    Least absolute deviation over block minima of the whole run, so that load before the onset weighs little.
    """
    floor = block_minima(t, y, float(t[0]), float(t[-1]), windows)
    width = float(t[-1] - t[0]) / windows
    at = np.arange(windows, dtype=np.float64)
    grown = np.clip(at[None, :] - at[:-2, None], 0.0, None) * (slope_per_s * width)
    rest = floor[None, :] - grown
    rest -= np.median(rest, axis=1, keepdims=True)
    return float(t[0]) + int(np.abs(rest).sum(axis=1).argmin()) * width
