"""`resin findings`: what the service found."""

from __future__ import annotations

import argparse
import json
import sys

HELP = "list what the service found; exit code 1 when there is an open leak"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.add_argument("--all", action="store_true", help="bounded, cleared and ended ones too")


def run(args: argparse.Namespace) -> int:
    from ._ask import ask

    answer = ask(args.config, "/api/v1/findings")
    if answer is None:
        return 2
    found = answer["findings"]
    leaks = any(f["verdict"] == "leak" and f["status"] == "open" for f in found)
    if not args.all:
        found = [f for f in found if f["status"] == "open" and f["verdict"] != "bounded"]
    if args.json:
        print(json.dumps({**answer, "findings": found}, indent=1))
        return int(leaks)
    if answer.get("last_error"):
        print(f"resin: the last detection failed: {answer['last_error']}", file=sys.stderr)
    if not found:
        seen = "detection has not run yet" if answer["last_run_s"] is None else "nothing leaks"
        print(f"{seen}{'' if args.all else ' (--all lists bounded and cleared findings)'}")
        return 0
    _table(found)
    if answer["elided"]:
        print(f"{answer['elided']} less severe findings are not kept")
    return int(leaks)


def _table(found: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..show import amount_text, hours_text, moment_text

    colours = {"leak": "red", "retention": "yellow", "unclear": "cyan", "bounded": "green"}
    table = Table(box=None, pad_edge=False)
    for title in ("id", "verdict", "process", "metric", "class", "since", "per hour", "to limit", "severity"):
        number = title in {"per hour", "to limit", "severity"}
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for f in found:
        slope, hours = f["slope_bytes_per_hour"], f.get("hours_to_limit")
        table.add_row(
            f["id"],
            f"[{colours[f['verdict']]}]{f['verdict']}[/]"
            + ("" if f["status"] == "open" else f" ({f['status']})"),
            f["entity"]["key"],
            f["metric"],
            f["growth_class"],
            moment_text(f["start_s"]),
            "-" if slope is None else amount_text(f["metric"], slope),
            "-" if hours is None else hours_text(hours),
            f"{f['severity']:.2f}",
        )
    # Piped to a file there is no edge to fit in: names stay whole.
    Console(width=None if sys.stdout.isatty() else 240).print(table)
