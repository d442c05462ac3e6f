"""Families of series that the detector was not shaped on: loads, caches, collectors and leaks by other generators.

`labelled_series` are what the growth classes look like; these are what machines do. Lengths from an hour to a week,
periods from 10 s to 5 min, some with gaps, jitter, a coarse scale or glitches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..column import Column
from ..model import Entity, Series

Array = NDArray[np.float64]
Rng = np.random.Generator
# (period, length) in seconds
GRIDS = ((10, 3600), (60, 6 * 3600), (60, 86400), (300, 86400), (300, 7 * 86400), (30, 2 * 3600))
DISTORTIONS = ("", "", "", "missing", "irregular", "coarse", "glitch")
DAY_S = 86400.0


@dataclass(frozen=True)
class Member:
    """One series of a family; `start_s` is where its leak begins, None when it has none."""

    family: str
    distortion: str
    start_s: float | None
    series: Series


def _autoregressive(rng: Rng, n: int, memory: float) -> Array:
    shocks = rng.standard_normal(n)
    y = np.zeros(n)
    for i in range(1, n):
        y[i] = memory * y[i - 1] + shocks[i]
    return y / max(float(y.std()), 1e-9)


def _noise(rng: Rng, n: int, level: float) -> Array:
    kind = rng.integers(0, 6)
    if kind == 0:
        return level * rng.uniform(0.001, 0.01) * rng.standard_normal(n)
    if kind == 1:
        return level * rng.uniform(0.003, 0.02) * _autoregressive(rng, n, rng.uniform(0.5, 0.95))
    if kind == 2:
        return level * rng.uniform(0.003, 0.015) * _autoregressive(rng, n, rng.uniform(0.95, 0.99))
    if kind == 3:
        return level * rng.uniform(0.02, 0.15) * _switching(rng, n) + 0.0005 * level * rng.standard_normal(n)
    if kind == 4:  # heavy tails
        bursts = np.clip(rng.pareto(2.0, n), 0, 20) * (rng.random(n) < 0.1)
        return level * rng.uniform(0.01, 0.1) * bursts
    return level * 0.0002 * rng.standard_normal(n)


def _switching(rng: Rng, n: int) -> Array:
    state = np.zeros(n)
    at, on = 0, 0
    while at < n:
        length = 1 + int(rng.exponential(n / 40))
        state[at : at + length] = on
        at, on = at + length, 1 - on
    return state


def _day(rng: Rng, t: Array, level: float) -> Array:
    wave = 1 + np.sin(2 * np.pi * t / DAY_S + rng.uniform(0, 2 * np.pi))
    return level * rng.uniform(0.03, 0.2) * wave + 0.003 * level * rng.standard_normal(t.size)


def _saw(rng: Rng, n: int, level: float) -> Array:
    period = int(n / rng.uniform(6, 30))
    teeth = ((np.arange(n) + rng.integers(0, period)) % period) / period
    return level * rng.uniform(0.05, 0.4) * teeth + 0.002 * level * rng.standard_normal(n)


def _ramp(n: int, start: int) -> Array:
    return np.clip(np.arange(n) - start, 0, None) / (n - start)


def _deploys(rng: Rng, t: Array, level: float) -> Array:
    y = np.zeros(t.size)
    for _ in range(rng.integers(1, 5)):
        y[rng.integers(5, t.size - 5) :] += level * rng.uniform(-0.15, 0.25)
    return y + _noise(rng, t.size, level)


def _cache(rng: Rng, t: Array, level: float) -> Array:
    n = t.size
    start, tau = int(n * rng.uniform(0, 0.4)), n * rng.uniform(0.05, 0.18)
    filled = 1 - np.exp(-np.clip(np.arange(n) - start, 0, None) / tau)
    return level * rng.uniform(0.1, 1.5) * filled + _noise(rng, n, level)


def _capped(rng: Rng, t: Array, level: float) -> Array:
    n = t.size
    start, end = int(n * rng.uniform(0, 0.3)), int(n * rng.uniform(0.4, 0.75))
    filled = np.clip((np.arange(n) - start) / (end - start), 0, 1)
    return level * rng.uniform(0.1, 1.5) * filled + _noise(rng, n, level)


def _page_cache(rng: Rng, t: Array, level: float) -> Array:
    filled = level * np.minimum(np.arange(t.size) / (t.size * rng.uniform(0.2, 0.6)), 1)
    return filled - np.abs(0.05 * level * _autoregressive(rng, t.size, 0.9)) * (filled >= 0.99 * level)


def _busy_hours(rng: Rng, t: Array, level: float) -> Array:
    x = np.linspace(0, 1, t.size)
    hump = np.exp(-(((x - rng.uniform(0.3, 0.6)) / rng.uniform(0.1, 0.2)) ** 2))
    return level * rng.uniform(0.1, 0.5) * hump + _noise(rng, t.size, level)


def _bursts(rng: Rng, t: Array, level: float) -> Array:
    y = np.zeros(t.size)
    for at in rng.integers(0, t.size, 12):
        y[at : at + 1 + int(rng.pareto(1.5) * t.size / 200)] += level * rng.uniform(0.05, 0.5)
    return y + 0.002 * level * rng.standard_normal(t.size)


def _restarts(rng: Rng, t: Array, level: float) -> Array:
    y = np.zeros(t.size)
    for at in rng.integers(5, t.size - 5, rng.integers(1, 5)):
        length = min(t.size - at, max(3, t.size // 50))
        y[at : at + length] -= 0.9 * level * np.exp(-np.arange(length) / (length / 4))
    return y + 0.003 * level * rng.standard_normal(t.size)


HEALTHY: dict[str, Callable[[Rng, Array, float], Array]] = {
    "noise": lambda rng, t, level: _noise(rng, t.size, level),
    "reverting walk": lambda rng, t, level: (
        level
        * rng.uniform(0.005, 0.05)
        * _autoregressive(rng, t.size, 1 - 1 / (t.size * rng.uniform(0.02, 0.1)))
    ),
    "daily load": _day,
    "collector": lambda rng, t, level: _saw(rng, t.size, level),
    "deploys": _deploys,
    "cache": _cache,
    "cache with a cap": _capped,
    "page cache": _page_cache,
    "busy hours": _busy_hours,
    "bursts": _bursts,
    "restarts": _restarts,
}


def _leak(rng: Rng, level: float, low: float = 0.06, high: float = 0.8) -> float:
    return level * rng.uniform(low, high)


def _start(rng: Rng, n: int, low: float, high: float) -> int:
    return int(n * rng.uniform(low, high))


def _linear(rng: Rng, t: Array, level: float) -> tuple[Array, int]:
    start = _start(rng, t.size, 0, 0.3)
    return _noise(rng, t.size, level) + _leak(rng, level) * _ramp(t.size, start), start


def _late(rng: Rng, t: Array, level: float) -> tuple[Array, int]:
    start = _start(rng, t.size, 0.5, 0.8)
    return _noise(rng, t.size, level) + _leak(rng, level) * _ramp(t.size, start), start


def _on_saw(rng: Rng, t: Array, level: float) -> tuple[Array, int]:
    start = _start(rng, t.size, 0, 0.4)
    return _saw(rng, t.size, level) + _leak(rng, level, 0.2) * _ramp(t.size, start), start


def _on_day(rng: Rng, t: Array, level: float) -> tuple[Array, int]:
    start = _start(rng, t.size, 0, 0.3)
    return _day(rng, t, level) + _leak(rng, level, 0.4, 1.2) * _ramp(t.size, start), start


def _stairs(rng: Rng, t: Array, level: float) -> tuple[Array, int]:
    start, steps = _start(rng, t.size, 0, 0.3), rng.integers(6, 14)
    climbed = np.floor(_ramp(t.size, start) * steps) / steps
    return 0.002 * level * rng.standard_normal(t.size) + _leak(rng, level) * climbed, start


def _restarted(rng: Rng, t: Array, level: float) -> tuple[Array, int]:
    period = t.size // int(rng.integers(2, 5))
    lives = (np.arange(t.size) % period) / period
    return _leak(rng, level, 1.2, 3.0) * lives + 0.003 * level * rng.standard_normal(t.size), 0


def _per_request(rng: Rng, t: Array, level: float) -> tuple[Array, int]:
    n, start = t.size, _start(rng, t.size, 0, 0.3)
    kept = np.cumsum((np.arange(n) >= start) * rng.poisson(2, n) * rng.lognormal(0, 1, n))
    return 0.002 * level * rng.standard_normal(n) + _leak(rng, level) * kept / kept[-1], start


def _after_deploy(rng: Rng, t: Array, level: float) -> tuple[Array, int]:
    start = _start(rng, t.size, 0.2, 0.6)
    y = _noise(rng, t.size, level)
    y[start:] += level * rng.uniform(-0.1, 0.2)
    return y + _leak(rng, level, 0.1) * _ramp(t.size, start), start


def _after_warm_up(rng: Rng, t: Array, level: float) -> tuple[Array, int]:
    warm = 0.5 * level * (1 - np.exp(-np.arange(t.size) / (t.size * 0.03)))
    return warm + _leak(rng, level, 0.1) * np.linspace(0, 1, t.size) + _noise(rng, t.size, level), 0


LEAKING: dict[str, Callable[[Rng, Array, float], tuple[Array, int]]] = {
    "linear": _linear,
    "late": _late,
    "on a collector": _on_saw,
    "on a daily load": _on_day,
    "stairs": _stairs,
    "restarted": _restarted,
    "per request": _per_request,
    "after a deploy": _after_deploy,
    "after a warm-up": _after_warm_up,
}


def _distorted(rng: Rng, t: Array, y: Array, how: str) -> tuple[Array, Array]:
    if how == "missing":
        there = rng.random(t.size) > 0.2
        gap = rng.integers(0, t.size)
        there[gap : gap + t.size // 20] = False
        return t[there], y[there]
    if how == "irregular":
        return np.sort(t + rng.uniform(-0.45, 0.45, t.size) * (t[1] - t[0])), y
    if how == "coarse":  # 0.1 % of 2 GiB
        step = 2.0**31 / 1000.0
        return t, np.round(y / step) * step
    if how == "glitch":
        y = y.copy()
        y[rng.integers(0, t.size, 2)] *= 0.3
    return t, y


def families(per_family: int, *, seed: int) -> list[Member]:
    """`per_family` series of each family, healthy ones first; the same for the same seed.

    A daily load needs more than a day to be told from a leak: those families last two days at least.
    """
    rng = np.random.default_rng(seed)
    made = []
    for name in (*HEALTHY, *LEAKING):
        for i in range(per_family):
            step_s, length_s = GRIDS[i % len(GRIDS)]
            if "daily" in name and length_s <= DAY_S:
                step_s, length_s = 60, int(2 * DAY_S)
            t = np.arange(0.0, length_s, step_s)
            level = rng.uniform(200, 1500) * 2.0**20
            if name in HEALTHY:
                y, start_s = HEALTHY[name](rng, t, level), None
            else:
                y, start = LEAKING[name](rng, t, level)
                start_s = float(t[start])
            how = str(rng.choice(DISTORTIONS))
            times, values = _distorted(rng, t, np.maximum(y + level, 0.02 * level), how)
            series = Series(Entity(f"{name} {i}", "simulated"), "memory_bytes", Column(times), Column(values))
            made.append(Member(name, how, start_s, series))
    return made
