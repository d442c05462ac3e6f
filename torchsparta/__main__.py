"""`python -m torchsparta report | convert`: look at a sparse model's file, make one from a program and
masks."""

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
    options = parser.parse_args(argv)
    try:
        return _report(options) if options.command == "report" else _convert(options)
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
        print(found)
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
    print(report(fast))
    print(f"wrote {options.output} ({options.output.stat().st_size:,} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
