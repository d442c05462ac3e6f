"""Labelled series: every growth class with noise, and ramps added to real traces."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..model import Entity, GrowthClass, Series

MEBIBYTE = 1048576.0
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Labelled:
    """A series with what is true of it."""

    series: Series
    leaks: bool
    growth_class: GrowthClass
    start_s: float | None  # of the leak


def labelled_series(count: int, *, seed: int, points: int = 720, step_s: float = 60.0) -> list[Labelled]:
    """`count` series of all classes in turn, the same for the same seed. Levels of 0.2 to 8 GiB."""
    rng = np.random.default_rng(seed)
    kinds: tuple[GrowthClass, ...] = ("steady", "flat", "stair", "plateau", "spike", "sublinear", "saw-tooth")
    return [_one(kinds[i % len(kinds)], i, rng, points, step_s) for i in range(count)]


def _one(kind: GrowthClass, index: int, rng: np.random.Generator, points: int, step_s: float) -> Labelled:
    t = np.arange(points) * step_s
    level = float(rng.uniform(200.0, 8000.0)) * MEBIBYTE
    growth = level * float(rng.uniform(0.15, 0.8))
    begin = int(points * rng.uniform(0.0, 0.6))
    since = np.clip(np.arange(points) - begin, 0, None) / (points - begin)
    y = level * (1.0 + float(rng.uniform(0.0005, 0.004)) * rng.standard_normal(points))
    start: float | None = None
    if kind == "steady":
        y += growth * since
        start = float(t[begin])
    elif kind == "stair":
        steps = int(rng.integers(6, 12))
        y += growth * np.floor(since * steps) / steps
        start = float(t[begin])
    elif kind == "plateau":
        y += growth * np.minimum(1.0, since / float(rng.uniform(0.15, 0.45)))
    elif kind == "sublinear":
        y += growth * np.sqrt(np.arange(points) / points)
    elif kind == "spike":
        for at in rng.integers(0, points - 12, size=6):
            y[at : at + int(rng.integers(2, 10))] += growth
    elif kind == "saw-tooth":
        period = int(rng.integers(40, 120))
        y += growth * (np.arange(points) % period) / period
    if rng.random() < 0.4 and kind in ("steady", "flat"):
        y += 0.5 * growth * _load(rng, points)
    entity = Entity(f"host-{index}", f"simulated-{kind}", index, 0.0)
    limit = 4.0 * (level + growth)
    series = Series(entity, "anon_bytes", tuple(t.tolist()), tuple(y.tolist()), limit_bytes=limit)
    return Labelled(series, kind in ("steady", "stair"), kind, start)


def _load(rng: np.random.Generator, points: int) -> Array:
    """Load that switches on and off at random; it returns to nothing often enough to show the floor."""
    state = np.zeros(points)
    at = 0
    on = False
    while at < points:
        length = int(rng.integers(5, 40))
        state[at : at + length] = 1.0 if on else 0.0
        at, on = at + length, not on
    return state


def inject_ramp(series: Series, *, start_s: float, slope_per_hour: float) -> Series:
    """The series with a leak added: `slope_per_hour` (in its own unit) from `start_s` to its end."""
    t = np.asarray(series.times_s)
    y = np.asarray(series.values) + np.clip(t - start_s, 0.0, None) / 3600.0 * slope_per_hour
    return replace(series, values=tuple(y.tolist()))


def noise_slope(series: Series, *, window_s: float = 4.0 * 3600.0) -> float | None:
    """Typical absolute slope per hour of the series over windows of `window_s`; None when it is shorter than two.

    The median over half-overlapping windows of the absolute least-squares slope: what noise and load alone look
    like on that time scale.
    """
    t, y = np.asarray(series.times_s), np.asarray(series.values)
    slopes = []
    at = t[0] if t.size else 0.0
    while t.size and at + window_s <= t[-1]:
        inside = (t >= at) & (t < at + window_s)
        if np.count_nonzero(inside) >= 30:
            slopes.append(abs(float(np.polyfit((t[inside] - at) / 3600.0, y[inside], 1)[0])))
        at += window_s / 2.0
    return float(np.median(slopes)) if len(slopes) >= 3 else None
