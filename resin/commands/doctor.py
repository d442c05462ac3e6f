"""`resin doctor`: what works on this host, and how to enable the rest."""

from __future__ import annotations

import argparse
import json

HELP = "tell what works on this host (ptrace, smaps, cgroups, NVML, ...) and how to enable the rest"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.add_argument("--options", action="store_true", help="list every option with its value")


def run(args: argparse.Namespace) -> int:
    import dataclasses

    if args.options:
        secret = {"token", "prometheus_token"}
        for name, value in dataclasses.asdict(args.config).items():
            shown = "(set)" if name in secret and value else repr(value)
            print(f"{name} = {shown}")
        return 0
    from ..doctor import examine

    checks = examine(args.config)
    if args.json:
        print(json.dumps([dataclasses.asdict(c) for c in checks], indent=1))
    else:
        for check in checks:
            print(f"{ {True: 'ok ', False: 'no ', None: ' - '}[check.works] } {check.name}: {check.seen}")
            if check.advice and not check.works:
                print(f"      {check.advice}")
    return 0 if all(check.works is not False or not check.needed for check in checks) else 1
