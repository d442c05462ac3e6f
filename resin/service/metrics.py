"""The service's own numbers and its findings in the Prometheus text format."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping

from ..agent.procfs import keyed_kilobytes, read_bytes
from ..store.duck import Store
from .findings import Findings
from .ingest import Committer

MAX_FINDINGS = 200  # series per metric about single findings; the most severe come first
_STARTED_S = time.time()

Line = tuple[Mapping[str, str], float]


def exposition(store: Store, committer: Committer, findings: Findings) -> str:
    """Text of /metrics."""
    counts = committer.counts
    everything = findings.all()
    open_ones = [f for f in everything if f["status"] == "open"]
    by_verdict = Counter(f["verdict"] for f in open_ones)
    parts = [
        _family("resin_ingest_batches_total", "counter", "Batches stored.", [({}, counts.batches)]),
        _family("resin_ingest_duplicate_batches_total", "counter", "Batches that had been stored before.",
                [({}, counts.duplicates)]),
        _family("resin_ingest_values_total", "counter", "Values stored.", [({}, counts.values)]),
        _family("resin_ingest_elided_values_total", "counter", "Values left out because a bound was reached.",
                [({}, counts.elided)]),
        _family("resin_ingest_failures_total", "counter", "Batches that could not be stored and were sent back.",
                [({}, counts.failures)]),
        _family("resin_entities", "gauge", "Processes, groups and counters known.", [({}, len(store.entities()))]),
        _family("resin_store_bytes", "gauge", "Size of the store on disk.", [({}, store.size_bytes())]),
        _family("resin_detection_runs_total", "counter", "Detection passes since start.", [({}, findings.runs)]),
        _family("resin_findings", "gauge", "Open findings by verdict.",
                [({"verdict": v}, by_verdict.get(v, 0)) for v in ("leak", "retention", "bounded", "unclear")]),
    ]  # fmt: skip
    horizon = time.time() - 86400.0  # a host gone for a day was taken away, not silenced
    hosts = [({"host": h}, at) for h, at in sorted(committer.last_sample_s.items()) if at > horizon]
    if hosts:
        parts.append(
            _family(
                "resin_agent_last_sample_timestamp_seconds",
                "gauge",
                "Time of the newest sample of a host.",
                hosts,
            )
        )
    if findings.last_run_s is not None:
        parts.append(
            _family("resin_detection_last_run_timestamp_seconds", "gauge", "When detection last succeeded.",
                    [({}, findings.last_run_s)])
        )  # fmt: skip
    if findings.last_duration_s is not None:
        parts.append(
            _family("resin_detection_duration_seconds", "gauge", "How long the last pass took.",
                    [({}, findings.last_duration_s)])
        )  # fmt: skip
        judged = findings.judgements
        parts.append(
            _family("resin_detection_series", "gauge", "Series of the last pass: judged anew, or as they were before.",
                    [({"judged": "anew"}, judged.judged), ({"judged": "before"}, judged.reused)])
        )  # fmt: skip
    shown = [f for f in open_ones if f["verdict"] != "bounded"][:MAX_FINDINGS]
    for name, field, factor, help_text in (
        ("resin_finding_severity", "severity", 1.0, "Severity of an open finding, 0 to 1."),
        ("resin_finding_confidence", "confidence", 1.0, "Confidence of an open finding, 0 to 1."),
        (
            "resin_finding_slope_per_hour",
            "slope_bytes_per_hour",
            1.0,
            "Growth per hour in the metric's unit.",
        ),
        (
            "resin_finding_time_to_limit_seconds",
            "hours_to_limit",
            3600.0,
            "Time until the limit at this growth.",
        ),
    ):
        lines = [(_labels(f), factor * f[field]) for f in shown if f.get(field) is not None]
        if lines:
            parts.append(_family(name, "gauge", help_text, lines))
    parts += _process()
    return "".join(parts)


def _labels(finding: Mapping) -> dict[str, str]:
    entity = finding["entity"]
    return {
        "id": finding["id"],
        "host": entity["host"],
        "component": entity["component"],
        "pid": "" if entity["pid"] is None else str(entity["pid"]),
        "metric": finding["metric"],
        "verdict": finding["verdict"],
        "growth_class": finding["growth_class"],
    }


def _process() -> list[str]:
    sizes = keyed_kilobytes(read_bytes("/proc/self/status") or b"")
    cpu = os.times()
    parts = [
        _family("process_cpu_seconds_total", "counter", "CPU time used.", [({}, cpu.user + cpu.system)]),
        _family("process_start_time_seconds", "gauge", "When the service started.", [({}, _STARTED_S)]),
    ]
    if b"VmRSS" in sizes:
        parts.append(
            _family("process_resident_memory_bytes", "gauge", "Resident memory.", [({}, sizes[b"VmRSS"])])
        )
    return parts


def _family(name: str, kind: str, help_text: str, lines: Iterable[Line]) -> str:
    text = [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
    for labels, value in lines:
        inside = ",".join(f'{label}="{_escape(content)}"' for label, content in labels.items())
        text.append(f"{name}{{{inside}}} {value!r}" if inside else f"{name} {value!r}")
    return "\n".join(text) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
