"""`resin top`: processes of this host by growth, live in the terminal; needs no service."""

from __future__ import annotations

import argparse
import contextlib

HELP = "processes of this host by growth, live; needs no service"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tick", type=float, default=2.0, metavar="SECONDS", help="sampling interval (default 2)"
    )
    parser.add_argument("--rows", type=int, default=0, help="processes shown (default: as many as fit)")
    parser.add_argument("--ticks", type=int, help="end after so many ticks")
    parser.add_argument(
        "--min", dest="min_mib", type=float, default=20.0, metavar="MIB", help="smallest process shown"
    )


def run(args: argparse.Namespace) -> int:
    from ..top import Top

    if args.tick <= 0:
        print("resin top: --tick must be greater than 0")
        return 2
    top = Top(args.config, tick_s=args.tick, min_bytes=int(args.min_mib * (1 << 20)), rows=args.rows)
    with contextlib.suppress(KeyboardInterrupt):
        top.run(ticks=args.ticks)
    return 0
