"""`resin mitigate ID [--apply]`: what could be done about a finding; with --apply, do the lightest that is allowed."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import urllib.parse

HELP = "what could be done about a finding (dry run); --apply does the lightest that is allowed"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="id of a finding, or its first characters (at least 4)")
    parser.add_argument("--apply", action="store_true", help="act; only what the option `mitigations` lists")
    parser.add_argument("--all", action="store_true", help="also show what is not possible, and why")
    parser.add_argument("--json", action="store_true", help="print the actions as JSON")


def run(args: argparse.Namespace) -> int:
    from ..mitigate import apply, plan
    from ..store.records import diagnosis_from_json, finding_from_json, to_json
    from ._ask import ask

    content = ask(args.config, f"/api/v1/findings/{urllib.parse.quote(args.id, safe='')}")
    if content is None:
        return 2
    finding = finding_from_json(content)
    diagnosis = diagnosis_from_json(content["diagnosis"]) if content.get("diagnosis") else None
    if args.apply and content.get("status", "open") != "open":
        print(f"resin mitigate: finding {finding.id} has cleared: nothing to act on", file=sys.stderr)
        return 2
    planned = plan(finding, diagnosis, args.config, with_refused=args.all or args.apply)
    if not args.apply:
        _show(args, planned, to_json)
        return 0
    taken = []
    for action in planned:
        if action.ok is False or action.name not in args.config.mitigations:
            continue
        taken.append(apply(action, finding, diagnosis, args.config))
        if action.name != "notify" and taken[-1].applied:
            break
    if not taken:
        print("resin mitigate: nothing was applied:", file=sys.stderr)
        for action in planned:
            why = action.reason if action.ok is False else "not listed in the option `mitigations`"
            print(f"  {action.name}: {why}", file=sys.stderr)
        return 2
    _show(args, taken, to_json)
    return 0 if all(action.ok for action in taken) else 2


def _show(args: argparse.Namespace, actions: list, to_json) -> None:  # noqa: ANN001
    if args.json:
        print(json.dumps([to_json(action) for action in actions], indent=1))
        return
    if not actions:
        print("nothing to do: no mitigation fits this finding (--all tells why)")
    for action in actions:
        state = {True: "done", False: "failed" if action.applied else "not possible", None: "planned"}[
            action.ok
        ]
        print(f"{action.name}: {state}: {action.reason}")
        if action.command:
            print(f"  {shlex.join(action.command)}")
