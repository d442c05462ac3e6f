"""One entity, several metrics: which finding stands, and what the others say about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..model import Diagnosis, Finding
from .judge import MEMORY_FAMILY

_RANK = {"leak": 0, "retention": 1, "unclear": 2, "bounded": 3}


def reconcile(findings: Iterable[Finding]) -> list[Finding]:
    """Findings of all metrics → findings worth telling, worst first; flat ones are left out.

    Of the memory metrics of one entity one finding stays. Growth of rss alone, while what is private or
    anonymous stays flat, is memory of files: bounded. Growth of what the allocator holds free (`heap_free_bytes`)
    that makes up most of a leak turns it into retention.
    """
    by_entity: dict[str, dict[str, Finding]] = {}
    for finding in findings:
        by_entity.setdefault(finding.entity.key, {})[finding.metric] = finding
    kept = [finding for metrics in by_entity.values() for finding in _of_entity(metrics)]
    told = [f for f in kept if f.growth_class != "flat" or f.verdict in ("leak", "retention")]
    return sorted(told, key=lambda f: (_RANK[f.verdict], -f.severity, f.entity.key, f.metric))


def _of_entity(metrics: dict[str, Finding]) -> list[Finding]:
    family = [metrics[name] for name in MEMORY_FAMILY if name in metrics]
    free = metrics.get("heap_free_bytes")
    others = [f for name, f in metrics.items() if name not in MEMORY_FAMILY and name != "heap_free_bytes"]
    if not family:
        return others
    private = [f for f in family if f.metric in ("uss_bytes", "anon_bytes")]
    # A metric with too few samples yet (slower ticks) says nothing against one that has enough.
    best = min(family, key=lambda f: (f.confidence == 0.0, _RANK[f.verdict], MEMORY_FAMILY.index(f.metric)))
    if private and best.metric in ("rss_bytes", "pss_bytes") and best.verdict in ("leak", "unclear"):
        settled = min(
            private, key=lambda f: (f.confidence == 0.0, _RANK[f.verdict], MEMORY_FAMILY.index(f.metric))
        )
        if settled.verdict == "bounded":
            shared = metrics.get("shmem_bytes")
            if shared is not None and shared.verdict == "leak":
                best = settled
            else:
                best = replace(
                    best,
                    verdict="bounded",
                    severity=0.0,
                    why=(
                        *best.why,
                        "private memory does not grow: these are pages of files, which cost nothing",
                    ),
                    would_settle=None,
                )
    elif best.metric == "uss_bytes" and best.verdict in ("leak", "unclear"):
        resident = metrics.get("rss_bytes")
        if resident is not None and resident.verdict == "bounded" and resident.growth_class == "flat":
            best = replace(
                best,
                why=(
                    *best.why,
                    "rss stays flat: pages shared with the parent process are being copied on write",
                ),
            )
    if free is not None and best.verdict in ("leak", "unclear"):
        best = _retention(best, free.evidence.get("growth", 0.0), "the allocator")
    return [best, *others]


def _retention(finding: Finding, free_growth: float, who: str) -> Finding:
    grown = finding.evidence.get("growth", 0.0)
    if grown <= 0 or free_growth < 0.6 * grown:
        return finding
    return replace(
        finding,
        verdict="retention",
        severity=0.5 * finding.severity,
        would_settle=None,
        why=(
            *finding.why,
            f"{who} holds {100 * min(free_growth / grown, 1.0):.0f} % of the growth as free memory: "
            "a trim or fewer arenas gives it back",
        ),
    )


def refine(finding: Finding, diagnosis: Diagnosis) -> Finding:
    """The finding after a diagnosis: fragmentation makes it retention, a mapped file makes it bounded."""
    if finding.verdict not in ("leak", "unclear"):
        return finding
    if diagnosis.kind == "fragmentation" and diagnosis.confidence >= 0.5:
        return replace(
            finding,
            verdict="retention",
            severity=0.5 * finding.severity,
            would_settle=None,
            why=(*finding.why, *diagnosis.notes),
        )
    if diagnosis.kind == "file-mapping" and diagnosis.confidence >= 0.5:
        return replace(
            finding, verdict="bounded", severity=0.0, would_settle=None, why=(*finding.why, *diagnosis.notes)
        )
    return finding
