"""`resin agent`: sample this host and send to a service."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys

HELP = "sample the processes of this host and send them to a service"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--service", metavar="URL", help="resin service (option service_url)")
    parser.add_argument("--remote-write", metavar="URL", help="Prometheus remote write endpoint instead")
    parser.add_argument("--tick", type=float, metavar="SECONDS", help="sampling interval (option tick_s)")
    parser.add_argument("--state-dir", metavar="DIR", help="where unsent samples are kept")
    parser.add_argument("--once", action="store_true", help="print one tick as JSON lines and send nothing")


def run(args: argparse.Namespace) -> int:
    from ..config import make_config

    given = {
        "service_url": args.service,
        "remote_write_url": args.remote_write,
        "tick_s": args.tick,
        "state_dir": args.state_dir,
    }
    config = make_config(
        {k: v for k, v in given.items() if v is not None}, source="the command line", base=args.config
    )
    from ..agent.agent import Agent, Sampler

    if args.once:
        for sample in Sampler(config).sample(slow=True):
            entity = {**dataclasses.asdict(sample.entity), "key": sample.entity.key}
            print(json.dumps({"entity": entity, "time_s": sample.time_s, "values": dict(sample.values)}))
        return 0
    try:
        agent = Agent(config)
    except RuntimeError as error:
        print(f"resin agent: {error}", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: agent.stop())
    if config.allow_remote_diagnosis:
        from ..agent.errands import Errands

        agent.on_answer = Errands(config).take
    target = config.remote_write_url or config.service_url
    print(f"resin agent: every {config.tick_s:g} s to {target}", file=sys.stderr)
    agent.run()
    left = len(agent.buffer)
    if left:
        print(f"resin agent: {left} unsent batches stay in {agent.buffer.directory}", file=sys.stderr)
    return 0
