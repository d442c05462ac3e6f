"""`resin watch -- COMMAND`: all in one for one machine; ends with a verdict."""

from __future__ import annotations

import argparse
import json
import sys

HELP = "run a command, watch its processes, end with a verdict (exit code 1: it leaks)"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tick", type=float, metavar="SECONDS", help="sampling interval (option watch_tick_s)"
    )
    parser.add_argument(
        "--for", dest="duration", type=float, metavar="SECONDS", help="end the command after this"
    )
    parser.add_argument(
        "--no-diagnose", action="store_true", help="do not look into the process when it leaks"
    )
    parser.add_argument(
        "--no-helper", action="store_true", help="start the command with its environment untouched"
    )
    parser.add_argument("--steps-file", metavar="FILE", help="file whose first word is the work done so far")
    parser.add_argument("--json", metavar="FILE", help="write the findings as JSON to FILE ('-': stderr)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND ARGUMENTS")
    parser.epilog = (
        "Exit code: 1 when a leak was found, otherwise that of the command (128 + N when signal N ended it). "
        "The report goes to stderr, so the command's output can be piped."
    )


def run(args: argparse.Namespace) -> int:
    import os

    from ..config import make_config
    from ..watch import Watch, print_line, report_lines

    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        print(
            "resin watch: name the command after --, as in: resin watch -- python train.py", file=sys.stderr
        )
        return 2
    config = args.config
    if args.tick is not None:
        config = make_config({"watch_tick_s": args.tick}, source="the command line", base=config)
    if args.steps_file:
        os.environ["RESIN_STEPS_FILE"] = os.path.abspath(args.steps_file)
    watch = Watch(
        command,
        config,
        duration_s=args.duration,
        diagnose=not args.no_diagnose,
        helper=not args.no_helper,
        tell=print_line,
    )
    try:
        outcome = watch.run()
    except OSError as error:
        print(f"resin watch: cannot start {command[0]!r}: {error}", file=sys.stderr)
        return 127
    if args.json:
        _write_json(args.json, outcome)
    print("\n".join(report_lines(outcome)), file=sys.stderr)
    if outcome.verdict == "leak":
        return 1
    if outcome.exit_code is None:
        return 0
    return outcome.exit_code if outcome.exit_code >= 0 else 128 - outcome.exit_code


def _write_json(path: str, outcome) -> None:  # noqa: ANN001
    from ..store.records import to_json

    content = {
        "command": list(outcome.command),
        "exit_code": outcome.exit_code,
        "seconds": round(outcome.seconds, 3),
        "verdict": outcome.verdict,
        "findings": [
            to_json(f) for f in outcome.findings if f.growth_class != "flat" or f.verdict != "bounded"
        ],
        "diagnoses": {key: to_json(d) for key, d in outcome.diagnoses.items()},
        "troubles": outcome.troubles,
    }
    text = json.dumps(content, indent=1)
    if path == "-":
        print(text, file=sys.stderr)
    else:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text + "\n")
