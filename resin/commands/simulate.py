"""`resin simulate`: list and run the corpus of leaking and healthy programs, or write a labelled trace."""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import sys

HELP = "run small leaking and healthy programs, or write a labelled trace"


def configure(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="what", required=True)
    kinds.add_parser("list", help="the programs, and what is true of each")
    run_one = kinds.add_parser("run", help="run one program, to be watched from elsewhere")
    run_one.add_argument("name")
    run_one.add_argument("--seconds", type=float, default=60.0)
    judge = kinds.add_parser("judge", help="run programs under resin and compare its verdicts")
    judge.add_argument("names", nargs="*", help="default: all that can run here")
    judge.add_argument("--seconds", type=float, default=60.0)
    trace = kinds.add_parser(
        "trace", help="write a trace for `resin detect` and its labels (FILE.labels.json)"
    )
    trace.add_argument("file", help="FILE.csv or FILE.csv.gz")
    trace.add_argument("--series", type=int, default=70)
    trace.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    return {"list": _list, "run": _run, "judge": _judge, "trace": _trace}[args.what](args)


def _list(args: argparse.Namespace) -> int:
    from ..simulate import CASES

    for case in CASES:
        missing = "" if case.available else f"  (needs {case.needs})"
        print(
            f"{case.name:20} {'leaks' if case.leaks else 'healthy':8} {'/'.join(case.verdicts):18} "
            f"{case.source}{missing}"
        )
    return 0


def _named(name: str):  # noqa: ANN202
    from ..simulate.corpus import by_name

    try:
        return by_name(name)
    except KeyError as error:
        print(f"resin simulate: {error.args[0]}", file=sys.stderr)
        return None


def _run(args: argparse.Namespace) -> int:
    case = _named(args.name)
    if case is None:
        return 2
    sys.stdout.flush()
    return os.execv(sys.executable, [sys.executable, str(case.path), str(args.seconds)])


def _judge(args: argparse.Namespace) -> int:
    from ..simulate import CASES
    from ..simulate.run import run_case

    cases = [_named(name) for name in args.names] if args.names else [c for c in CASES if c.available]
    if any(case is None for case in cases):
        return 2
    wrong = 0
    for case in cases:
        result = run_case(case, seconds=args.seconds, config=args.config)
        wrong += not result.right_verdict
        line = f", culprit line ranked {result.line_rank}" if result.line_rank else ""
        print(
            f"{case.name:20} {'ok' if result.right_verdict else 'WRONG':6} {result.verdict} ({result.growth_class})"
            f" on {result.metric}{line}",
            flush=True,
        )
    return 1 if wrong else 0


def _trace(args: argparse.Namespace) -> int:
    from ..simulate import labelled_series

    found = labelled_series(args.series, seed=args.seed)
    opened = gzip.open if args.file.endswith(".gz") else open
    with opened(args.file, "wt", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("host", "process", "time", "bytes"))
        for one in found:
            entity = one.series.entity
            for t, value in zip(one.series.times_s, one.series.values):
                writer.writerow((entity.host, entity.component, f"{t:.0f}", f"{value:.0f}"))
    labels = {
        f"{one.series.entity.host}/{one.series.entity.component}": {
            "leaks": one.leaks,
            "growth_class": one.growth_class,
            "start": one.start_s,
        }
        for one in found
    }
    with open(f"{args.file}.labels.json", "w", encoding="utf-8") as file:
        json.dump(labels, file, indent=1)
    print(f"{len(found)} series in {args.file}, labels in {args.file}.labels.json")
    return 0
