"""Level 2: the judgement on each series, one by one or many at once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..model import Finding, GrowthClass, Series, Verdict
from .begin import began
from .bulk import Prepared, prepare_many
from .evidence import Evidence, Quiet, weigh
from .floor import onset
from .rule import Ruling, material_growth, rule_on
from .shape import growth_class, without_growth
from .thresholds import DEFAULT, Thresholds
from .trend import mann_kendall, theil_sen
from .words import explain, span, still, work_lines
from .work import against_work

Array = NDArray[np.float64]
_SERIES_AT_ONCE = 4096  # bounds what is held of a fleet at one time


# Different views of the same memory: which of them tells a leak best may change, the finding stays the same.
MEMORY_FAMILY = ("anon_bytes", "uss_bytes", "pss_bytes", "rss_bytes")


def finding_id(series: Series) -> str:
    """Ten hexadecimal digits that stay the same for one entity and metric (or family of memory metrics)."""
    what = "memory" if series.metric in MEMORY_FAMILY else series.metric
    return hashlib.sha256(f"{series.entity.key}|{what}".encode()).hexdigest()[:10]


def judge(series: Series, thresholds: Thresholds = DEFAULT) -> Finding:
    """The finding on one series; verdict `bounded` and class `flat` where nothing grows."""
    return judge_many([series], thresholds)[0]


def judge_many(series: Iterable[Series], thresholds: Thresholds = DEFAULT) -> list[Finding]:
    """One finding per series, in order. Series are read lazily, a few thousand at a time."""
    findings: list[Finding] = []
    batch: list[Series] = []
    for one in series:
        batch.append(one)
        if len(batch) == _SERIES_AT_ONCE:
            findings.extend(_judge_batch(batch, thresholds))
            batch = []
    findings.extend(_judge_batch(batch, thresholds))
    return findings


def _judge_batch(batch: list[Series], thresholds: Thresholds) -> list[Finding]:
    prepared, windows = prepare_many(batch, thresholds)
    by_run: dict[tuple[int, int], list[Evidence | Quiet]] = {}
    for window, evidence in zip(windows, weigh(windows, thresholds)):
        if evidence is not None:
            by_run.setdefault((window.series, window.run), []).append(evidence)
    return [
        _by_the_wall(one, _finding(one, [by_run[index, run] for run in range(len(one.runs))], thresholds))
        for index, one in enumerate(prepared)
    ]


def _by_the_wall(one: Prepared, finding: Finding) -> Finding:
    """The finding with times of the wall, where it was judged by a clock that stood still in silences."""
    if not one.silences.after_s.size:
        return finding
    start, end = (
        None if s is None else float(one.silences.real(s)) for s in (finding.start_s, finding.end_s)
    )
    why = finding.why
    if finding.verdict != "bounded":
        why = (*why, f"{span(one.silences.total_s)} without a sample are left out: suspended, or not watched")
    return replace(finding, start_s=start, end_s=end, why=why)


def _finding(one: Prepared, evidence: list[list[Evidence | Quiet]], thresholds: Thresholds) -> Finding:
    if not evidence:
        return _too_short(one, thresholds)
    leaks: list[tuple[int, Ruling]] = []
    last: Ruling | Quiet | None = None
    for run, views in enumerate(evidence):
        a, b = one.runs[run]
        found = [e for e in views if isinstance(e, Evidence)]
        if not found:
            assert isinstance(views[0], Quiet)
            last = views[0]
            continue
        # A program's loading is no growth that slows down: it is left out where it was seen.
        whole = next((e for e in found if e.share == 0.8), found[0])
        rulings = [
            rule_on(
                e,
                whole,
                metric=one.series.metric,
                run_t=one.t[a:b],
                run_y=one.y[a:b],
                trace_s=one.trace_s,
                limit=one.series.limit_bytes,
                thresholds=thresholds,
            )
            for e in found
        ]
        leaks.extend((run, r) for r in rulings if not r.failed)
        last = views[0] if isinstance(views[0], Quiet) else rulings[0]
    assert last is not None
    if leaks:
        run = leaks[-1][0]
        ruling = next(r for n, r in leaks if n == run)  # the longest view of the latest leaking run
    if leaks and not _outlived(one, run, ruling):
        return _leak(one, run, ruling, restarts_that_leak=len({n for n, _ in leaks}), thresholds=thresholds)
    if isinstance(last, Quiet):
        return _still(one, len(one.runs) - 1, last, thresholds)
    return _no_leak(one, len(one.runs) - 1, last, thresholds)


def _outlived(one: Prepared, run: int, ruling: Ruling) -> bool:
    """Whether the process that took its place has run for as long as the growth took, without growing so."""
    if run == len(one.runs) - 1:
        return False
    a, b = one.runs[-1]
    return float(one.t[b - 1] - one.t[a]) >= ruling.evidence.length_s


def _leak(
    one: Prepared, run: int, ruling: Ruling, *, restarts_that_leak: int, thresholds: Thresholds
) -> Finding:
    e = ruling.evidence
    a, b = one.runs[run]
    t, y = one.t[a:b], one.y[a:b]
    inside = (t >= e.start_s) & (t <= e.end_s)
    at, floor = _thinned(t[inside], y[inside])
    # Between jumps the ramp itself is the slope; a line through the floor would take the jumps for growth.
    through_floor = at.size >= 3 and not e.drift
    slope = (theil_sen(at, floor) if through_floor else e.slope_per_s) * 3600.0
    tau, p = mann_kendall(floor)
    growth: GrowthClass = "steady"
    if restarts_that_leak >= 2 and one.y.size >= thresholds.min_saw_points:
        growth = "saw-tooth"
    elif e.stairs >= thresholds.min_stairs:
        growth = "stair"
    past = 0.5 if ruling.fall is None else min(1.0, e.growth / max(3.0 * ruling.fall, 1e-12))
    margins = (
        (e.r2 - thresholds.min_r2) / (1.0 - thresholds.min_r2),
        1.0 - e.one_step / thresholds.max_one_step,
        past,
        min(1.0, e.points / 240.0),
        min(1.0, 2.0 * e.length_s / max(one.trace_s, 1e-9)),
    )
    confidence = 0.5 + 0.5 * float(np.mean(np.clip(margins, 0.0, 1.0)))
    verdict: Verdict = "leak"
    numbers = _numbers(e, ruling, tau, p)
    lines = explain(one.series, ruling, slope, tau, p, growth, verdict)
    view = None
    if one.series.work is not None:
        moments = one.silences.seen(one.series.times_s)
        view = against_work(t, y, moments, one.series.work, start_s=e.start_s, end_s=e.end_s)
    if view is not None:
        numbers["load_r2"] = view.load_r2
        lines = (*lines, *work_lines(one.series.metric, view))
        if view.follows_load:
            verdict, confidence = "bounded", 0.5 + 0.5 * view.load_r2
    start = e.start_s
    broke = began(one.t, one.y, slope_per_s=slope / 3600.0, from_s=e.start_s, to_s=float(t[-1]))
    if broke is not None:
        start = broke
    elif e.share < 1.0 and e.ramp_windows >= 0.8 * e.windows:
        # The view may begin in the middle of the growth.
        start = onset(
            t,
            y,
            slope_per_s=slope / 3600.0,
            from_s=e.start_s,
            to_s=e.end_s,
            tolerance_s=0.04 * one.trace_s,
        )
    return Finding(
        id=finding_id(one.series),
        entity=one.series.entity,
        metric=one.series.metric,
        verdict=verdict,
        growth_class=growth,
        start_s=start,
        end_s=float(one.t[b - 1]),
        slope_bytes_per_hour=slope,
        severity=severity(ruling.hours_to_limit) if verdict == "leak" else 0.0,
        confidence=confidence,
        bytes_per_step=None if view is None else view.bytes_per_step,
        hours_to_limit=ruling.hours_to_limit if one.series.limit_bytes is not None else None,
        why=lines,
        evidence=numbers,
    )


def _no_leak(one: Prepared, run: int, ruling: Ruling, thresholds: Thresholds) -> Finding:
    e = ruling.evidence
    a, b = one.runs[run]
    y = one.y[a:b]
    material = material_growth(one.series.metric, e.level, one.series.limit_bytes, thresholds)
    growth = growth_class(e, y, material, thresholds)
    verdict: Verdict = "bounded"
    settle = None
    if growth in ("steady", "stair", "sublinear") and "soon" not in ruling.failed:
        verdict = "unclear"
        settle = _would_settle(growth, ruling)
    grew = growth in ("steady", "stair", "sublinear", "plateau")
    slope = e.slope_per_s * 3600.0 if grew else 0.0
    return Finding(
        id=finding_id(one.series),
        entity=one.series.entity,
        metric=one.series.metric,
        verdict=verdict,
        growth_class=growth,
        start_s=e.start_s if grew else None,
        end_s=float(one.t[b - 1]) if grew else None,
        slope_bytes_per_hour=slope,
        severity=0.3 * severity(ruling.hours_to_limit) if verdict == "unclear" else 0.0,
        confidence=0.5 if verdict == "unclear" else 0.5 + 0.5 * min(1.0, e.points / 240.0),
        hours_to_limit=ruling.hours_to_limit
        if verdict == "unclear" and one.series.limit_bytes is not None
        else None,
        why=explain(one.series, ruling, slope, None, None, growth, verdict),
        would_settle=settle,
        evidence=_numbers(e, ruling, None, None),
    )


def _still(one: Prepared, run: int, quiet: Quiet, thresholds: Thresholds) -> Finding:
    a, b = one.runs[run]
    y = one.y[a:b]
    metric = one.series.metric
    material = material_growth(metric, quiet.level, one.series.limit_bytes, thresholds)
    growth = without_growth(y, material, thresholds)
    return Finding(
        id=finding_id(one.series),
        entity=one.series.entity,
        metric=metric,
        verdict="bounded",
        growth_class=growth,
        start_s=None,
        end_s=None,
        slope_bytes_per_hour=0.0,
        severity=0.0,
        confidence=0.5 + 0.5 * min(1.0, y.size / 240.0),
        why=still(metric, growth, quiet.total, y.size),
        evidence={"growth": max(quiet.total, 0.0), "level": quiet.level, "points": float(y.size)},
    )


def _too_short(one: Prepared, thresholds: Thresholds) -> Finding:
    return Finding(
        id=finding_id(one.series),
        entity=one.series.entity,
        metric=one.series.metric,
        verdict="unclear",
        growth_class="flat",
        start_s=None,
        end_s=None,
        slope_bytes_per_hour=None,
        severity=0.0,
        confidence=0.0,
        why=(f"{one.y.size} samples between restarts at most; a trend needs {thresholds.min_points}",),
        would_settle=f"at least {thresholds.min_points} samples of one run of the process",
    )


def _would_settle(growth: GrowthClass, ruling: Ruling) -> str:
    if growth == "sublinear":
        return "watching on: growth that slows down either ends at a cap (cache) or goes on"
    if growth == "stair":
        return "further steps of the same size, or a count of the work done at each step"
    if "unlike its past" in ruling.failed:
        return (
            "growth that goes on beyond what this series has given back before, or a count of the work done"
        )
    return "twice the time, or a count of the work done (steps, requests) beside the memory"


def severity(hours_to_limit: float | None) -> float:
    """1 within the hour, 0 at 30 days or never, logarithmic between."""
    if hours_to_limit is None or hours_to_limit >= 720.0:
        return 0.05
    return float(np.clip(1.0 - math.log(max(hours_to_limit, 1.0)) / math.log(720.0), 0.05, 1.0))


def _thinned(t: Array, y: Array, points: int = 64) -> tuple[Array, Array]:
    """Lowest value in each of at most `points` blocks of equal count, with its time."""
    if y.size <= points:
        return t, y
    edges = np.linspace(0, y.size, points + 1).astype(np.int64)[:-1]
    lowest = np.minimum.reduceat(y, edges)
    return t[edges], lowest


def _numbers(e: Evidence, ruling: Ruling, tau: float | None, p: float | None) -> dict[str, float]:
    numbers = {
        "growth": e.growth,
        "level": e.level,
        "ramp_s": e.length_s,
        "view": e.share,
        "r2": e.r2,
        "best_r2": e.best_r2,
        "one_step": e.one_step,
        "steps": float(e.steps),
        "last_third": e.last_third,
        "concave_r2": e.concave_r2,
        "returned": e.returned,
        "drift_t": e.drift_t,
        "stairs": float(e.stairs),
        "smallest_quarter": min(e.quarters),
        "points": float(e.points),
    }
    if ruling.fall is not None:
        numbers["largest_fall"] = ruling.fall
    if tau is not None and p is not None:
        numbers["tau"], numbers["p"] = tau, p
    return numbers
