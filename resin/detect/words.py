"""The reasons of a verdict as sentences with their numbers."""

from __future__ import annotations

from ..model import GrowthClass, Series, Verdict
from .rule import Ruling
from .work import WorkView

_FAILURES = {
    "material": "the growth is too small to matter",
    "soon": "at this slope it would take more than 30 days to fill the limit (or to double)",
    "linear": "a line that lasts to the end explains the floor worse than a ramp that ended, or not well",
    "grown up": "the process is too young: it may be starting up",
    "long": "the growth is too short a part of what was seen to tell it from a burst",
    "even": "the growth sits in a few jumps",
    "lasting": "the growth has slowed down",
    "kept": "most of what was taken was given back in between",
    "unlike its past": "the series has fallen by as much before, so the rise may be load",
}


def amount(metric: str, value: float) -> str:
    """The value with its unit: bytes in binary units, utilisation in per cent, counts as they are."""
    if metric.endswith("_bytes"):
        for unit, size in (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)):
            if abs(value) >= size:
                return f"{value / size:.1f} {unit}"
        return f"{value:.0f} B"
    if "utilisation" in metric:
        return f"{100.0 * value:.2f} %"
    return f"{value:,.0f}" if abs(value) >= 100.0 else f"{value:.4g}"


def span(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2.0 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


_STILL = {
    "flat": "the floor does not rise",
    "spike": "it rises in bursts and falls back; the floor does not rise",
    "saw-tooth": "it climbs and falls back again and again; the floor of the teeth does not rise",
}


def still(metric: str, growth: GrowthClass, total: float, points: int) -> tuple[str, ...]:
    """What there is to say of a run that does not grow: flat, spike or saw-tooth."""
    return (f"{_STILL[growth]}: {amount(metric, max(total, 0.0))} over {points} samples",)


def explain(
    series: Series,
    ruling: Ruling,
    slope_per_hour: float,
    tau: float | None,
    p: float | None,
    growth: GrowthClass,
    verdict: Verdict,
) -> tuple[str, ...]:
    """Sentences in the order a reader asks: how much, how sure, against what, until when."""
    e = ruling.evidence
    if growth in _STILL and verdict != "leak":
        return still(series.metric, growth, e.total, e.points)
    lines = [
        f"the floor rose by {amount(series.metric, e.growth)} from {amount(series.metric, e.level)} within "
        f"{span(e.length_s)}, {amount(series.metric, slope_per_hour)} per hour, and none of it was given back"
    ]
    if verdict == "leak":
        lines.append(
            f"a line from that start explains {100 * e.r2:.0f} % of the floor's variance"
            + (f"; Mann-Kendall tau {tau:.2f}, p {p:.1g}" if tau is not None and p is not None else "")
        )
        lines.append(
            f"each quarter of the ramp holds at least {100 * min(e.quarters):.0f} % of the growth, the largest step "
            f"{100 * e.one_step:.0f} %; the last third grows at {e.last_third:.2f} of the mean slope"
        )
        if ruling.fall is not None:
            lines.append(
                f"before the start it never gave back more than {amount(series.metric, ruling.fall)} in that time"
            )
    else:
        lines.extend(_FAILURES[name] for name in ruling.failed if name in _FAILURES)
        if growth == "plateau":
            lines.append("the growth has ended: the end of the series is level")
    if ruling.hours_to_limit is not None and verdict in ("leak", "unclear"):
        if series.limit_bytes is not None:
            lines.append(
                f"at this slope the limit of {amount(series.metric, series.limit_bytes)} is reached in "
                f"{span(3600.0 * ruling.hours_to_limit)}"
            )
        else:
            again = ruling.hours_to_limit * (e.level + e.growth) / e.level  # from where it stands now
            lines.append(f"at this slope it doubles in {span(3600.0 * again)}")
    return tuple(lines)


def work_lines(metric: str, view: WorkView) -> list[str]:
    """What the job's own counter says, as sentences."""
    if view.follows_load:
        return [
            f"the rate of work explains {100 * view.load_r2:.0f} % of the level and what it leaves does not grow: "
            "this is load, not a leak"
        ]
    if view.bytes_per_step is None:
        return ["it grew although no work was done"]
    lines = [f"{amount(metric, view.bytes_per_step)} per step of work"]
    if view.idle_growth is not None:
        lines.append(f"{100 * view.idle_growth:.0f} % of the growth came while no work was done")
    return lines
