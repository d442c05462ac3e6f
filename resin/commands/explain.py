"""`resin explain ID`: why it was flagged, with the numbers and a plot."""

from __future__ import annotations

import argparse
import json
import urllib.parse

HELP = "why a finding was made: numbers, plot, diagnosis, actions"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="id of a finding, or its first characters (at least 4)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    from ._ask import ask

    finding = ask(args.config, f"/api/v1/findings/{urllib.parse.quote(args.id, safe='')}")
    if finding is None:
        return 2
    if args.json:
        print(json.dumps(finding, indent=1))
        return 0
    from ..show import action_lines, diagnosis_lines, finding_lines, moment_text, plot

    lines = finding_lines(finding)
    if finding["status"] == "cleared":
        lines.append("  cleared: detection no longer sees it")
    if finding["status"] == "ended":
        lines.append(f"  ended: no samples since {moment_text(finding['ended_s'])}")
    series = finding.get("series")
    if series:
        lines.append("")
        lines += plot(
            series["times_s"],
            series["values"],
            metric=finding["metric"],
            fit=finding.get("fit"),
            limit=series["limit_bytes"],
        )
    if finding.get("evidence"):
        lines += ["", "numbers:"]
        lines += [f"  {name} = {value:.6g}" for name, value in sorted(finding["evidence"].items())]
    lines.append("")
    if finding.get("diagnosis"):
        lines += diagnosis_lines(finding["diagnosis"])
    else:
        lines.append(f"not diagnosed; `resin diagnose {finding['id']}` does")
    lines += action_lines(finding.get("actions", []))
    print("\n".join(lines))
    return 0
