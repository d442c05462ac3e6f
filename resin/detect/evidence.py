"""The numbers of the leak rule, for many floors at once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .drift import between_jumps
from .floor import block_minima, kept
from .ramps import fit_ramps
from .thresholds import Thresholds

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """One run of a series, or its last half or quarter, as block minima. Times in seconds."""

    series: int  # index of the series it belongs to
    run: int  # index of the run among the judged runs of that series
    share: float  # 1.0, 0.5 or 0.25 of the run
    start_s: float
    end_s: float
    points: int
    floor: Array  # (W,)
    drift: bool = False  # judged without its jumps


@dataclass(frozen=True)
class Evidence:
    """What one window tells. Growth and level in the unit of the series, shares in 0..1."""

    share: float
    points: int
    start_s: float  # where the hinge starts
    end_s: float  # end of what counts as growth
    width_s: float  # of one block
    ramp_windows: int
    windows: int
    level: float  # the floor where the hinge starts
    growth: float  # of the kept memory, from the hinge to the end
    total: float  # of the kept memory, from the window's start
    r2: float  # of the hinge
    best_r2: float  # of the best ramp, ended or not
    best_from: int
    best_to: int
    quarters: tuple[float, float, float, float]  # share of the growth in each quarter of the ramp
    one_step: float  # largest share of the growth in one block
    steps: int  # blocks that hold 80 % of the growth
    last_third: float  # slope of the last third over the mean slope
    concave_r2: float  # of the best curve that slows down
    whole_quarters: tuple[float, float, float, float]  # growth in each quarter of the window, from its start
    drift_t: float  # Student t of the growth over eight equal parts of the ramp, 7 degrees of freedom
    noise: float  # robust standard deviation of the floor, from its increments
    stairs: int  # equal steps at equal distances; 0 when they are not
    returned: float  # median of what lies above the kept memory, over the growth
    rest: float = 0.0  # share of the window after the end of the best ramp
    rest_slope: float = 1.0  # slope there over the slope of the best ramp
    drift: bool = False  # all of the above is of the floor without its jumps
    jump_share: float = 0.0  # of the blocks of the ramp
    net: float = (
        1.0  # growth of the floor itself over the ramp, jumps included, over the growth between jumps
    )
    falls: int = 0  # downward jumps within the ramp

    @property
    def slows_down(self) -> bool:
        """A curve that slows down explains the floor much better than any line, and its end says the same.

        The end is compared with the second quarter: a warm-up followed by a line slows down only once.
        """
        first, second, third, last = self.whole_quarters
        return (
            self.concave_r2 > 0.97
            and 1.0 - self.concave_r2 < 0.35 * (1.0 - self.r2)
            and first > second > 0.95 * third
            and third > 0.95 * last
            and last < 0.85 * second
        )

    @property
    def ended(self) -> bool:
        """A ramp that stopped explains the floor at least twice as well, and after it the floor is level."""
        return (
            self.rest >= 0.08
            and self.rest_slope < 0.15
            and self.best_r2 > 0.98
            and 1.0 - self.best_r2 < 0.5 * (1.0 - self.r2)
        )

    @property
    def length_s(self) -> float:
        return self.ramp_windows * self.width_s

    @property
    def slope_per_s(self) -> float:
        return self.growth / self.length_s if self.length_s > 0 else 0.0


def shares_of(points: int, *, warms_up: bool) -> list[float]:
    """Views of a run of so many points: as a whole, without its warm-up, its last half and quarter."""
    shares = (1.0, 0.8, 0.5, 0.25) if warms_up else (1.0, 0.5, 0.25)
    return [share for share in shares if share == 1.0 or int(points * share) >= 40]


def block_count(points: int, thresholds: Thresholds) -> int:
    """Blocks of a view of so many points."""
    if points >= 2 * thresholds.windows:
        return thresholds.windows
    return 32 if points >= 64 else 12


def windows_of(
    series: int, run: int, t: Array, y: Array, thresholds: Thresholds, *, warms_up: bool = False
) -> list[Window]:
    """The run as a whole, its last half and its last quarter, where they hold enough points.

    With `warms_up`, when the run's beginning was seen, one more without its first fifth.
    """
    found = []
    n = y.size
    for share in shares_of(n, warms_up=warms_up):
        points = int(n * share)
        tail_t, tail_y = t[n - points :], y[n - points :]
        count = block_count(points, thresholds)
        start, end = float(tail_t[0]), float(tail_t[-1])
        floor = block_minima(tail_t, tail_y, start, end, count)
        found.append(Window(series, run, share, start, end, points, floor))
        if count >= 32:
            found.append(Window(series, run, share, start, end, points, floor, drift=True))
    return found


@dataclass(frozen=True)
class Quiet:
    """A run that does not grow, told by a look at many runs at once; it is not worth an Evidence."""

    level: float
    total: float  # growth of the kept memory over the run


def weigh(windows: list[Window], thresholds: Thresholds) -> list[Evidence | Quiet | None]:
    """Evidence of each window, in order. Windows of one block count are handled as one matrix.

    The view of a run as a whole always has an answer: Quiet where it did not grow, or no view of that run can become
    a leak. Of the other views of a run that is looked at, None where no line explains a growth.
    """
    looks: list[_Look | None] = [None] * len(windows)
    for count, drift in sorted({(w.floor.size, w.drift) for w in windows}):
        index = [i for i, w in enumerate(windows) if (w.floor.size, w.drift) == (count, drift)]
        _look_at(windows, index, drift, thresholds, looks)
    alive = {
        (window.series, window.run)
        for window, look in zip(windows, looks)
        if look is not None and (look.can_leak or (look.grown and window.share == 1.0 and not window.drift))
    }
    out: list[Evidence | Quiet | None] = []
    for window, look in zip(windows, looks):
        whole = window.share == 1.0 and not window.drift
        found: Evidence | Quiet | None = None
        if whole and look is not None and not ((window.series, window.run) in alive and look.columns):
            found = Quiet(look.level, look.total)
        elif (window.series, window.run) not in alive:
            pass
        elif look is not None and (whole or look.can_leak or (window.share == 0.8 and look.columns)):
            found = _evidence(window, look)
        out.append(found)
    return out


@dataclass(frozen=True)
class _Look:
    """One row of the matrices: enough to tell whether the window deserves an Evidence. `columns` empty: no rise."""

    level: float
    total: float
    can_leak: bool
    grown: bool
    columns: dict[str, NDArray]
    row: int


def _look_at(
    windows: list[Window], index: list[int], drift: bool, thresholds: Thresholds, looks: list[_Look | None]
) -> None:
    floors = np.stack([windows[i].floor for i in index])
    tail = _tail(floors.shape[1], thresholds)
    seen, jumps = between_jumps(floors) if drift else (floors, None)
    held = kept(seen, tail)
    total = held[:, -1] - held[:, 0]
    # Growth from any start is at most the growth from the first block.
    rises = np.flatnonzero(total > thresholds.min_relative_growth * np.maximum(held[:, 0], 0.0))
    for row, i in enumerate(index):
        if windows[i].share == 1.0 and not drift:
            looks[i] = _Look(float(held[row, 0]), float(total[row]), False, False, {}, 0)
    if not rises.size:
        return
    columns = _measure(seen[rises], tail)
    if jumps is not None:
        columns.update(_jumps(floors[rises], jumps[rises], columns))
    grows = columns["growth"] > thresholds.min_relative_growth * np.maximum(columns["level"], 0.0)
    straight = columns["r2"] >= np.maximum(thresholds.min_r2, columns["best_r2"] - thresholds.max_r2_deficit)
    can_leak = grows & straight & _even_enough(columns, floors.shape[1], drift, thresholds)
    grown = columns["total"] > 5.0 * columns["noise"]
    for row, i in enumerate(rises.tolist()):
        window = windows[index[i]]
        if can_leak[row] or (not drift and window.share in (1.0, 0.8)):
            level = float(held[i, 0])
            looks[index[i]] = _Look(
                level, float(total[i]), bool(can_leak[row]), bool(grown[row]), columns, row
            )


def _even_enough(
    columns: dict[str, NDArray], count: int, drift: bool, thresholds: Thresholds
) -> NDArray[np.bool_]:
    """Conditions of the rule that most of what noise makes of a floor fails, for all rows at once."""
    x = thresholds
    even = (
        (columns["one_step"] < x.max_one_step)
        & (columns["steps"] >= x.min_steps)
        & (columns["quarters"].min(axis=1) > x.min_quarter)
        & (columns["drift_t"] >= (x.min_quiet_drift_t if drift else x.min_drift_t))
    )
    steps = columns["kept_steps"]
    risen = steps > 0.1 * steps.max(axis=1, keepdims=True)
    first = risen[:, 0].astype(np.int64) + (risen[:, 1:] & ~risen[:, :-1]).sum(axis=1)
    stairs = (first >= x.min_stairs) & (risen.sum(axis=1) <= 2 * first)
    long = columns["ramp_windows"] >= max(x.min_ramp_windows, x.min_ramp_share * (count - 1))
    return (even | stairs) & long & (columns["last_third"] > x.min_last_third)


def _tail(count: int, thresholds: Thresholds) -> int:
    return max(2, round(count * thresholds.tail_share))


def _measure(floors: Array, tail: int) -> dict[str, NDArray]:
    """The columns of Evidence for rows of floors; `stairs` is left to `_evidence`."""
    held = kept(floors, tail)
    rows, width = held.shape
    fit = fit_ramps(held)
    row = np.arange(rows)
    start = fit.hinge_from
    length = width - 1 - start
    level = held[row, start]
    growth = held[:, -1] - level
    safe = np.where(growth > 0, growth, 1.0)
    ends = start[:, None] + length[:, None] * np.arange(9)[None, :] / 8.0
    low = np.floor(ends).astype(np.int64)
    high = np.minimum(low + 1, width - 1)
    at = held[row[:, None], low] + (ends - low) * (held[row[:, None], high] - held[row[:, None], low])
    eighths = np.diff(at, axis=1) / safe[:, None]
    quarters = eighths[:, ::2] + eighths[:, 1::2]
    spread = np.maximum(eighths.std(axis=1, ddof=1), 1e-9)
    increments = np.diff(floors, axis=1)
    centre = np.median(increments, axis=1, keepdims=True)
    steps = np.diff(held, axis=1)
    steps[np.arange(width - 1)[None, :] < start[:, None]] = 0.0
    ordered = np.sort(steps, axis=1)[:, ::-1] / safe[:, None]
    third = np.maximum(length // 3, 1)
    last = (held[:, -1] - held[row, width - 1 - third]) / safe * (length / third)
    above = np.where(np.arange(width)[None, :] >= start[:, None], floors[:, :width] - held, np.nan)
    top = held[row, fit.best_to]
    rest = width - 1 - fit.best_to
    rise = np.maximum(top - held[row, fit.best_from], 1e-300) / np.maximum(fit.best_to - fit.best_from, 1)
    marks = np.rint(np.linspace(0, width - 1, 5)).astype(np.int64)
    whole = np.diff(held[:, marks], axis=1)
    return {
        "hinge_from": start,
        "ramp_windows": length,
        "level": level,
        "growth": growth,
        "total": held[:, -1] - held[:, 0],
        "r2": fit.hinge_r2,
        "best_r2": fit.best_r2,
        "best_from": fit.best_from,
        "best_to": fit.best_to,
        "quarters": quarters,
        "one_step": ordered[:, 0],
        "steps": (np.cumsum(ordered, axis=1) < 0.8).sum(axis=1) + 1,
        "last_third": last,
        "concave_r2": fit.concave_r2,
        "rest": rest / (width - 1),
        "rest_slope": np.where(rest > 0, (held[:, -1] - top) / np.maximum(rest, 1) / rise, 1.0),
        "whole_quarters": whole,
        "drift_t": eighths.mean(axis=1) / (spread / np.sqrt(8.0)),
        "noise": 1.4826 / np.sqrt(2.0) * np.median(np.abs(increments - centre), axis=1),
        "kept_steps": steps,
        "returned": _row_medians(above) / safe,
    }


def _jumps(floors: Array, jumps: NDArray[np.bool_], columns: dict[str, NDArray]) -> dict[str, NDArray]:
    """What the jumps that were taken out say: how many they are, and whether they gave the growth back."""
    start = columns["hinge_from"]
    inside = np.arange(jumps.shape[1])[None, :] >= start[:, None]
    falls = inside & jumps & (np.diff(floors, axis=1) < 0)
    width = floors.shape[1]
    held = kept(floors, 1)
    row = np.arange(floors.shape[0])
    net = held[:, -1] - held[row, start]
    growth = np.where(columns["growth"] > 0, columns["growth"], np.inf)
    return {
        "jump_share": (inside & jumps).sum(axis=1) / np.maximum(width - 1 - start, 1),
        "net": net / growth,
        "falls": falls.sum(axis=1),
    }


def _row_medians(rows: Array) -> Array:
    """Median of each row without its NaN; every row has at least one number. np.nanmedian loops in Python."""
    ordered = np.sort(rows, axis=1)  # NaN last
    count = np.count_nonzero(~np.isnan(rows), axis=1)
    row = np.arange(rows.shape[0])
    return 0.5 * (ordered[row, (count - 1) // 2] + ordered[row, count // 2])


def _regular(steps: Array) -> int:
    """Number of steps when they are of like size at like distance, else 0. A jump across two blocks is one."""
    largest = steps.max()
    if largest <= 0:
        return 0
    risen = steps > 0.1 * largest
    first = np.flatnonzero(risen & ~np.concatenate(([False], risen[:-1])))
    if first.size < 4 or np.count_nonzero(risen) > 2 * first.size:
        return 0
    sizes = np.add.reduceat(np.where(risen, steps, 0.0), first)
    gaps = np.diff(first)
    alike = sizes.std() < 0.35 * sizes.mean() and gaps.std() < 0.35 * gaps.mean()
    return int(first.size) if alike and sizes.sum() > 0.8 * steps.sum() else 0


_COPIED = {f.name for f in fields(Evidence)}


def _evidence(window: Window, look: _Look) -> Evidence:
    columns, row, count = look.columns, look.row, window.floor.size
    width = (window.end_s - window.start_s) / count
    values: dict[str, Any] = {
        name: tuple(column[row].tolist()) if name.endswith("quarters") else column[row].item()
        for name, column in columns.items()
        if name in _COPIED
    }
    hinge = int(columns["hinge_from"][row])
    return Evidence(
        share=window.share,
        points=window.points,
        start_s=window.start_s + hinge * width,
        end_s=window.start_s + (hinge + int(columns["ramp_windows"][row]) + 1) * width,
        width_s=width,
        windows=count,
        drift=window.drift,
        stairs=_regular(columns["kept_steps"][row]),
        **values,
    )
