"""Findings that only repeat others: the sum of a job whose growth is that of one of its processes."""

from __future__ import annotations

from ..model import Finding


def without_echoes(found: list[Finding]) -> list[Finding]:
    """Findings without those on a whole job whose growth is mostly that of one of its processes.

    A job's sum is there for leaks that no single process shows: many helpers, each small.
    """
    steepest: dict[tuple[str, str | None], float] = {}
    for f in found:
        if f.verdict in {"leak", "retention"} and not f.entity.component.endswith(":job"):
            place = (f.entity.host, f.entity.group)
            steepest[place] = max(steepest.get(place, 0.0), f.slope_bytes_per_hour or 0.0)
    return [
        f
        for f in found
        if not f.entity.component.endswith(":job")
        or not f.metric.endswith("_bytes")
        or steepest.get((f.entity.host, f.entity.group), 0.0) < 0.5 * (f.slope_bytes_per_hour or 0.0)
        or (f.entity.host, f.entity.group) not in steepest
    ]
