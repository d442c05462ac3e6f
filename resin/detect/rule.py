"""The leak rule: which numbers of the evidence have to hold, and the sentences that say so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .drift import between_jumps, gives_back
from .evidence import Evidence
from .floor import block_minima, largest_fall
from .segments import is_saw
from .thresholds import Thresholds

Array = NDArray[np.float64]


# Metrics that count things; their limits are numbers of them.
COUNTS = ("fds", "threads", "children")


@dataclass(frozen=True)
class Ruling:
    """Evidence with the conditions that failed; no failure means leak. `fall` in the unit of the series."""

    evidence: Evidence
    failed: tuple[str, ...]
    fall: float | None
    hours_to_limit: float | None


def material_growth(metric: str, level: float, limit: float | None, thresholds: Thresholds) -> float:
    """Least growth worth a word, in the unit of the metric.

    A share of the level always; an absolute floor where the unit is known. `limit` is the scale of metrics
    that are shares themselves (utilisation).
    """
    relative = thresholds.min_relative_growth * max(level, 0.0)
    if metric.endswith("_bytes"):
        return max(relative, thresholds.min_growth_bytes)
    if metric in COUNTS:
        return max(relative, thresholds.min_growth_count)
    return max(relative, 1e-4 * limit if limit else 0.0)


def rule_on(
    evidence: Evidence,
    whole: Evidence,
    *,
    metric: str,
    run_t: Array,
    run_y: Array,
    trace_s: float,
    limit: float | None,
    thresholds: Thresholds,
) -> Ruling:
    """Apply the rule to one window of a run, whose evidence as a whole is `whole`.

    The past of the run is looked at only when all else holds. Times in seconds, `limit` in the series' unit.
    """
    e, x = evidence, thresholds
    hours = None
    slope_per_h = e.slope_per_s * 3600.0
    if slope_per_h > 0 and limit is not None:
        hours = max(limit - float(run_y[-1]), 0.0) / slope_per_h
    elif slope_per_h > 0 and e.level > 0:
        hours = e.level / slope_per_h  # no limit known: the time to double stands for it
    horizon = x.horizon_hours if limit is not None else x.doubling_hours
    soon = e.growth > 0 if hours is None else hours <= horizon
    if metric in COUNTS and limit is not None and slope_per_h > 0:
        # Limits of counts may be set beyond all use (a billion descriptors): doubling matters all the same.
        soon = soon or e.level <= x.doubling_hours * slope_per_h
    conditions = {
        "material": e.growth > material_growth(metric, e.level, limit, x),
        "soon": soon,
        "linear": e.r2 >= x.min_r2
        and e.r2 >= e.best_r2 - x.max_r2_deficit
        and (not e.ended or e.stairs >= x.min_stairs),
        "grown up": float(run_t[-1] - run_t[0]) >= x.min_observed_s,
        "long": e.ramp_windows >= max(x.min_ramp_windows, x.min_ramp_share * (e.windows - 1))
        and e.length_s >= x.min_trace_share * trace_s,
        "even": e.stairs >= x.min_stairs
        or (
            e.one_step < x.max_one_step
            and e.steps >= x.min_steps
            and min(e.quarters) > x.min_quarter
            and e.drift_t >= (x.min_quiet_drift_t if e.drift else x.min_drift_t)
        ),
        "lasting": e.last_third > x.min_last_third
        and (e.quarters[3] > x.min_last_quarter or e.stairs >= x.min_stairs)
        and (not whole.slows_down or _straight_by_now(e, run_t, run_y)),
        "kept": e.returned < x.max_returned and e.net >= x.min_net,
        "quiet": not e.drift or (_quiet_enough(e, x) and e.steps >= x.min_quiet_steps),
    }
    failed = [name for name, holds in conditions.items() if not holds]
    fall = None
    if not failed:
        fall = largest_fall(run_t, run_y, float(run_t[0]), e.start_s, e.length_s)
        failed = _against_past(e, run_t, run_y, fall, thresholds)
    return Ruling(e, tuple(failed), fall, hours)


def _quiet_enough(e: Evidence, x: Thresholds) -> bool:
    """Few jumps; the more there are, the evener what lies between them has to be."""
    if e.jump_share <= x.max_jump_share:
        return True
    return e.jump_share <= x.crowded_jump_share and e.drift_t >= x.crowded_drift_t


def _against_past(
    evidence: Evidence, run_t: Array, run_y: Array, fall: float | None, thresholds: Thresholds
) -> list[str]:
    """Conditions that fail when the growth is compared with what the run did before it."""
    e, x = evidence, thresholds
    start_s, end_s = float(run_t[0]), float(run_t[-1])
    blocks = max(1, min(128, run_y.size // 3))
    floor = block_minima(run_t, run_y, start_s, end_s, blocks)
    if e.drift and gives_back(floor):
        return ["kept"]
    at = start_s + (np.arange(blocks) + 0.5) * (end_s - start_s) / blocks
    smooth, jumps = (part[0] for part in between_jumps(floor[None, :]))
    earlier = (at < e.start_s) & (at >= e.start_s - e.length_s)
    if e.last_third < x.slowing_last_third and np.count_nonzero(earlier) >= 4:
        # The median, as a single step of load or of a start is no curve.
        before_per_s = float(np.median(np.diff(floor[earlier]))) * blocks / (end_s - start_s)
        if before_per_s > x.slowing_before * e.slope_per_s:
            return ["lasting"]  # the line is the end of a curve that bends towards a cap
    past = run_y[run_t < e.start_s]
    # A ramp smoother than anything this noise does needs no comparison; a saw's teeth are smooth as well.
    smooth_ramp = not is_saw(past, 0.5 * e.growth) and (
        e.stairs >= x.min_stairs or (e.r2 > x.smooth_r2 and e.steps >= x.smooth_steps)
    )
    if fall is None or e.growth > x.min_over_falls * fall:
        return []
    if smooth_ramp and (e.growth > x.smooth_over_falls * fall or e.drift_t >= x.smooth_drift_t):
        before = at[1:] < e.start_s
        jumpy = not before.any() or jumps[before].mean() > x.max_past_jumps
        # A cycle comes down as slowly as it goes up; among jumps, what is left of the falls says nothing.
        if jumpy or e.growth > x.min_over_cycle * (
            largest_fall(at, smooth, start_s, e.start_s, 2.0 * e.length_s) or 0.0
        ):
            return []
    return ["unlike its past"]


def _straight_by_now(e: Evidence, run_t: Array, run_y: Array) -> bool:
    """Whether a run that slowed down has become a line: its last quarter grows as the one before did."""
    if e.share > 0.5 or e.r2 < 0.985 or e.last_third < 0.93:
        return False
    start_s, end_s = float(run_t[0]), float(run_t[-1])
    middle, later, last = block_minima(run_t, run_y, start_s, end_s, 64)[[31, 47, 63]].tolist()
    clear = last - later > 25.0 * e.noise  # else noise decides whether it slows down
    return clear and later - middle < 1.08 * (last - later)
