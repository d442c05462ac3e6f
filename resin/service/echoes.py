"""Findings that only repeat others: the sum of a job whose growth is that of one of its processes."""

from __future__ import annotations

from ..model import Finding

_BROUGHT = {"fds", "threads"}  # every process brings some: a job with ever more children has more of them


def without_echoes(found: list[Finding]) -> list[Finding]:
    """Findings without those on a whole job that another one explains.

    A job's sum is there for leaks that no single process shows: many helpers, each small. It repeats the finding on
    one of the job's processes that grows at half its slope or more, and where children become ever more, descriptors
    and threads of the job only come with them.
    """
    steepest: dict[tuple[str, str | None, str], float] = {}
    multiplying = set()
    for f in found:
        if f.verdict not in {"leak", "retention"}:
            continue
        if not _is_job(f):
            steepest[_place(f)] = max(steepest.get(_place(f), 0.0), f.slope_bytes_per_hour or 0.0)
        elif f.metric == "children":
            multiplying.add((f.entity.host, f.entity.group))
    return [
        f
        for f in found
        if not _is_job(f)
        or not (
            (_place(f) in steepest and steepest[_place(f)] >= 0.5 * (f.slope_bytes_per_hour or 0.0))
            or (f.metric in _BROUGHT and (f.entity.host, f.entity.group) in multiplying)
        )
    ]


def _is_job(finding: Finding) -> bool:
    return finding.entity.component.endswith(":job")


def _place(finding: Finding) -> tuple[str, str | None, str]:
    kind = "memory" if finding.metric.endswith("_bytes") else finding.metric
    return finding.entity.host, finding.entity.group, kind
