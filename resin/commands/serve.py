"""`resin serve`: the service and its page."""

from __future__ import annotations

import argparse
import sys

HELP = "collect from agents, detect, show findings on a page (http://127.0.0.1:8790)"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", help="address to listen on (option listen_host; beyond loopback set a token)"
    )
    parser.add_argument("--port", type=int, help="port to listen on (option listen_port)")
    parser.add_argument("--store", metavar="FILE", help="DuckDB file (option store_path)")
    parser.add_argument(
        "--prometheus", metavar="URL", help="detect over this Prometheus API instead of the store"
    )
    parser.add_argument(
        "--with-agent", action="store_true", help="sample this host too; no `resin agent` needed here"
    )


def run(args: argparse.Namespace) -> int:
    from ..config import make_config

    given = {
        "listen_host": args.host,
        "listen_port": args.port,
        "store_path": args.store,
        "prometheus_url": args.prometheus,
    }
    config = make_config(
        {k: v for k, v in given.items() if v is not None}, source="the command line", base=args.config
    )
    from ..service.server import serve
    from ..store.base import StoreError

    try:
        return serve(config, with_agent=args.with_agent)
    except StoreError as error:
        print(f"resin serve: {error}", file=sys.stderr)
        return 2
