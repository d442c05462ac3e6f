"""`python -m torchsparta report | convert | bench`: look at a sparse model's file, make one from a program and
masks, time it against the same model dense."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .errors import SpartaError


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m torchsparta", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("report", help="print what a sparse model consists of")
    show.add_argument("model", type=Path, help="a file that torchsparta.save or `convert` wrote")
    show.add_argument("--html", type=Path, help="write a page here instead")
    make = commands.add_parser(
        "convert", help="a model exported with torch.export.save, and its masks, to a sparse model's file"
    )
    make.add_argument("model", type=Path, help="a .pt2 file; its example inputs are used")
    make.add_argument("masks", type=Path, help="a mask or quantizer file of NNI (.pth, .safetensors)")
    make.add_argument("output", type=Path, help="the .safetensors file to write")
    make.add_argument("--quantizer", type=Path, help="a second file: quantizer config of a pruned model")
    make.add_argument("--verify", action="store_true", help="compare with the masked model in float64 first")
    race = commands.add_parser("bench", help="time a sparse model against the same model with dense layers")
    race.add_argument("model", type=Path, help="a file that torchsparta.save or `convert` wrote")
    race.add_argument("--rounds", type=int, default=20, help="calls of each, in turns")
    race.add_argument("--threads", type=int, help="default: as many as PyTorch takes")
    race.add_argument(
        "--calibrate", action="store_true", help="measure this CPU first: better choices, some seconds"
    )
    options = parser.parse_args(argv)
    try:
        return {"report": _report, "convert": _convert, "bench": _bench}[options.command](options)
    except (SpartaError, OSError) as error:
        print(f"torchsparta: {error}", file=sys.stderr)
        return 1


def _report(options: argparse.Namespace) -> int:
    from .reporting import report
    from .saving import load

    found = report(load(options.model))
    if options.html:
        options.html.write_text(found.html(), encoding="utf-8")
        print(f"wrote {options.html}")
    else:
        _show(found)
    return 0


def _show(found: object) -> None:
    """In colour on a terminal that has rich, else as plain text."""
    if sys.stdout.isatty():
        try:
            from rich import print as rich_print
        except ImportError:
            pass
        else:
            rich_print(found)
            return
    print(found)


def _bench(options: argparse.Namespace) -> int:
    import torch

    from .calibration import calibrate
    from .race import race

    if options.threads:
        torch.set_num_threads(options.threads)
    if options.calibrate:
        calibrate()
    print(race(options.model, options.rounds))
    return 0


def _convert(options: argparse.Namespace) -> int:
    import torch

    from .api import sparsify
    from .masks import from_nni
    from .reporting import report
    from .saving import save

    program = torch.export.load(str(options.model))
    if program.example_inputs is None:
        raise SpartaError(f"{options.model} was exported without example inputs; export it again with them")
    args, kwargs = program.example_inputs
    tesa = from_nni(options.masks, options.quantizer)
    fast = sparsify(program.module(check_guards=False), tesa, tuple(args), kwargs, verify=options.verify)
    save(fast, options.output)
    _show(report(fast))
    print(f"wrote {options.output} ({options.output.stat().st_size:,} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
