"""`resin diagnose PID|ID`: what grows in a running process, and at which line."""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.parse

HELP = "find out what grows in a running process, and at which line"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="PID|ID", help="a process of this host, or the id of a finding")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to watch (default 5)")
    parser.add_argument(
        "--attach",
        action="store_true",
        help="permit memray to attach through a debugger where it is importable in the target",
    )
    parser.add_argument("--json", action="store_true", help="print the diagnosis as JSON")


def run(args: argparse.Namespace) -> int:
    from ..diagnose import Gone, diagnose
    from ..show import diagnosis_lines
    from ..store.records import finding_from_json, to_json

    if not 0.5 <= args.seconds <= 60.0:
        print(f"resin diagnose: --seconds {args.seconds:g}: between 0.5 and 60", file=sys.stderr)
        return 2
    finding = None
    if _is_pid(args.target):
        pid = int(args.target)
    else:
        from ._ask import ask

        content = ask(args.config, f"/api/v1/findings/{urllib.parse.quote(args.target, safe='')}")
        if content is None:
            return 2
        finding = finding_from_json(content)
        from ..agent.identity import is_running

        if finding.entity.pid is None or not is_running(finding.entity, state_dir=args.config.state_dir):
            print(
                f"resin diagnose: {finding.entity.key} does not run on this host (any more)", file=sys.stderr
            )
            return 2
        pid = finding.entity.pid
    try:
        diagnosis = diagnose(pid, finding, seconds=args.seconds, allow_attach=args.attach)
    except Gone as error:
        print(f"resin diagnose: {error}", file=sys.stderr)
        return 2
    if finding is not None:
        _keep(args, diagnosis)
    print(
        json.dumps(to_json(diagnosis), indent=1)
        if args.json
        else "\n".join(diagnosis_lines(to_json(diagnosis)))
    )
    return 0


def _is_pid(text: str) -> bool:
    return text.isdigit() and os.path.exists(f"/proc/{text}")


def _keep(args: argparse.Namespace, diagnosis) -> None:  # noqa: ANN001
    """Hand the diagnosis to the service, so that the page shows it; without one it is only printed."""
    from ..client import Client, ServiceError, Unreachable
    from ..store.records import to_json

    try:
        Client(args.config).post("/api/v1/diagnoses", to_json(diagnosis))
    except (ServiceError, Unreachable) as error:
        print(f"resin: the diagnosis was not kept: {error}", file=sys.stderr)
