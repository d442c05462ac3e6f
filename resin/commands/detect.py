"""`resin detect FILE`: judge any trace offline. Exit code 1 when there is a leak, 2 when the file is unusable."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter

from ..detect import judge_many
from ..detect.files import Trace, TraceError, read_trace
from ..detect.words import amount
from ..model import Finding

HELP = "judge a trace (CSV, CSV.gz or Parquet) offline"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="columns host, process, time, bytes or pod, minute, memory_utilisation")
    parser.add_argument("--json", action="store_true", help="print findings as JSON")


def run(args: argparse.Namespace) -> int:
    try:
        trace = read_trace(args.file)
    except (TraceError, OSError) as error:
        print(f"resin detect: {error}", file=sys.stderr)
        return 2
    findings = judge_many(trace.series)
    named = sorted(
        ((name, finding) for name, finding in zip(trace.names, findings) if worth_a_word(finding)),
        key=lambda pair: (pair[1].verdict != "leak", -pair[1].severity, pair[0]),
    )
    if args.json:
        report = {"entities": len(findings), "findings": [as_json(name, f, trace) for name, f in named]}
        print(json.dumps(report, indent=1))
    else:
        _print(findings, named, trace)
    return 1 if any(finding.verdict == "leak" for finding in findings) else 0


def worth_a_word(finding: Finding) -> bool:
    """Flat series are counted, not listed; so are those too short to be judged."""
    return finding.growth_class != "flat"


def as_json(name: str, finding: Finding, trace: Trace) -> dict[str, object]:
    """The finding in the report's format, times in the terms of the file."""
    slope = finding.slope_bytes_per_hour
    return {
        "entity": name,
        "verdict": finding.verdict,
        "growth_class": finding.growth_class,
        "start": None if finding.start_s is None else trace.to_file_time(finding.start_s),
        "end": None if finding.end_s is None else trace.to_file_time(finding.end_s),
        "slope_per_hour": None if slope is None else float(f"{slope:.6g}"),
        "severity": round(finding.severity, 3),
        "confidence": round(finding.confidence, 3),
    }


def _print(findings: list[Finding], named: list[tuple[str, Finding]], trace: Trace) -> None:
    counts = Counter(f.verdict for f in findings)
    print(f"{len(findings)} entities: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common()))
    for name, finding in named:
        if finding.verdict == "bounded":
            continue
        slope = amount(finding.metric, finding.slope_bytes_per_hour or 0.0)
        start = "-" if finding.start_s is None else trace.to_file_time(finding.start_s)
        print(
            f"\n{name}: {finding.verdict} ({finding.growth_class}) since {start}, {slope}/h, "
            f"severity {finding.severity:.2f}, confidence {finding.confidence:.2f}"
        )
        for line in finding.why:
            print(f"  - {line}")
        if finding.would_settle:
            print(f"  ? {finding.would_settle}")
    quiet = counts["bounded"]
    if quiet:
        print(f"\n{quiet} bounded entities not listed; --json names those that grew")
