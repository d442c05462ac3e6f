"""The 119 operators of the ROLLER evaluation on this CPU: is the un-measured choice the best, and is it the fastest?

python benchmarks/operators.py [--only ID or CLASS ...] [--parts ranking,peers] [--peers a,b] [--rounds N]
                               [--threads N] [--clock wall|thread] [--budget MINUTES] [--json FILE] [--fresh]

`ranking` times the program that the search puts first against the rest of its top ten and 40 random feasible ones, in
turns: the goal is within 10 % of the best of the 50 for 90 % of the operators, and a geometric mean of 0.95.
`peers` times torch.compile(backend="roller") against eager PyTorch and Inductor: the goals are ahead of the fastest
for 60 %, within 10 % of it for 90 %, and 60 s to compile all 119.

The batch is divided by a power of two, printed with each case, so that a call takes some 10 ms. Figures go to
benchmarks/results/operators-<LLVM's name of this CPU>-<cores>.json after each case; a run that ends early (its budget,
an interrupt) is continued by the same command. `--threads 1 --clock thread` counts processor time of the one thread:
for a machine that is busy with other things. `python benchmarks/report.py` makes the document.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import ranking  # noqa: E402
import torch  # noqa: E402
from bench import RESULTS, about, cold_caches, describe, measure  # noqa: E402
from contenders import CONTENDERS  # noqa: E402
from operator_cases import case, divisor  # noqa: E402
from operator_report import summary  # noqa: E402
from workers import CLOCKS, Contender  # noqa: E402

from torchroller.operators import Operator, read  # noqa: E402

PARTS = ("ranking", "peers")
PEERS = ("eager", "inductor-max", "roller")
KIND = "operators"
_FIRST = "E19/64"  # a case that is not among those measured: what a process compiles first


def in_turn(found: list[Operator]) -> list[Operator]:
    """Operators in an order in which every first part holds about the same share of each class."""
    size: dict[str, int] = {}
    for op in found:
        size[op.op] = size.get(op.op, 0) + 1
    at: dict[str, int] = {}
    place = []
    for op in found:
        at[op.op] = at.get(op.op, 0) + 1
        place.append((at[op.op] - 0.5) / size[op.op])
    return [op for _, op in sorted(zip(place, found), key=lambda pair: pair[0])]


def missing(known: dict[str, Any], parts: list[str], peers: list[str]) -> Iterator[str]:
    """Parts of a case that its figures do not have yet."""
    if "ranking" in parts and "ranking" not in known:
        yield "ranking"
    if "peers" in parts and not all(p in known["rows"] or p in known["skipped"] for p in peers):
        yield "peers"


def rank(name: str, op: Operator, scale: int, rounds: int, clock: str) -> dict[str, Any]:
    """The `ranking` part of a case, or why there is none."""
    fn, inputs = case(op, scale).make()
    try:
        with torch.no_grad():
            return ranking.measure(ranking.main_launch(fn, inputs), rounds, clock)
    except ValueError as error:
        return {"failure": f"{name}: {error}"}


def told(found: dict[str, Any]) -> str:
    """The `ranking` part as a line of text."""
    if "failure" in found:
        return f"  top-1 not rated: {found['failure']}"
    chosen, fastest = found["programs"][0], found["fastest"]
    return (
        f"  top-1 {found['ratio']:.2f} of the best of {len(found['programs'])}: {chosen['measured_s'] * 1e3:.3f} ms "
        f"{chosen['program']}; best {fastest['measured_s'] * 1e3:.3f} ms {fastest['program']} ({fastest['kind']})"
    )


def restored(path: Path, facts: dict[str, Any], fresh: bool) -> dict[str, dict[str, Any]]:
    """Results of an earlier run on the same machine with the same settings, by operator."""
    if fresh or not path.exists():
        return {}
    data = json.loads(path.read_text())
    same = ("processor", "cores", "threads", "clock")
    differ = [k for k in same if data["machine"].get(k) != facts[k]]
    if data.get("kind") != KIND or differ:
        raise ValueError(
            f"{path} holds figures of another run ({', '.join(differ) or 'not of this command'} differ): --fresh "
            "replaces them, --json names another file"
        )
    return {r["operator"]: r for r in data["results"]}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="ids (C0) or classes (conv2d)")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--peers", default=",".join(PEERS), help="contenders, comma separated")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--budget", type=float, default=90.0, help="minutes after which no case is started")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds to compile a case")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--fresh", action="store_true", help="do not continue from the file")
    args = parser.parse_args(argv)
    parts, peers = args.parts.split(","), args.peers.split(",")
    chosen = [o for o in in_turn(list(read())) if not args.only or {o.id, o.op} & set(args.only)]
    wrong = [p for p in parts if p not in PARTS] + [p for p in peers if p not in CONTENDERS]
    if wrong or not chosen:
        parser.error(
            f"unknown: {wrong}; parts are {PARTS}, peers {list(CONTENDERS)}"
            if wrong
            else f"no operator matches {args.only}; classes are {sorted({o.op for o in read()})}"
        )
    if args.clock == "thread" and args.threads != 1:
        parser.error("--clock thread counts the calling thread alone: it needs --threads 1")
    torch.set_num_threads(args.threads)
    facts: dict[str, Any] = {**about(args.threads), "clock": args.clock}
    path = args.json or RESULTS / f"operators-{facts['isa']}-{facts['cores']}.json"
    try:
        results = restored(path, facts, args.fresh)
    except ValueError as error:
        print(f"operators: {error}", file=sys.stderr)
        return 2
    start, pool, caches = time.monotonic(), {}, cold_caches()
    pool = {n: Contender(n, args.threads, args.clock) for n in peers}
    left = 0
    try:
        for number, op in enumerate(chosen, 1):
            scale = divisor(op, args.threads)
            name = f"{op.id}/{scale}"
            result = results.get(op.id, {"case": name, "rows": {}, "skipped": {}})
            todo = list(missing(result, parts, peers)) if result["case"] == name else list(parts)
            if not todo:
                continue
            minutes = (time.monotonic() - start) / 60
            if minutes > args.budget:
                left += 1
                continue
            print(
                f"[{number}/{len(chosen)}, {minutes:.1f} min] {op.scaled(scale)}; batch / {scale}", flush=True
            )
            if "peers" in todo:
                for contender in pool.values():  # imports and the like are no operator's compile time
                    if contender.process is None:
                        contender.open(_FIRST)
                        contender.wait(args.patience)
                        first = contender.ready.compile_s if contender.ready else None
                        facts.setdefault("first_compile_s", {})[contender.name] = first
                        contender.done()
                kept = {k: result[k] for k in ("ranking",) if k in result}
                result = measure(
                    case(op, scale), pool, peers, args.rounds, args.threads, args.patience, in_order=True
                )
                result.update(kept)
                print(describe(result), flush=True)
            if "ranking" in todo:
                result["ranking"] = rank(name, op, scale, args.rounds, args.clock)
                print(told(result["ranking"]), flush=True)
            results[op.id] = {
                **result,
                "group": op.op,
                "operator": op.id,
                "scale": scale,
                "shape": str(op.scaled(scale)),
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            ordered = [results[o.id] for o in read() if o.id in results]
            path.write_text(json.dumps({"machine": facts, "kind": KIND, "results": ordered}, indent=1) + "\n")
    finally:
        for contender in pool.values():
            contender.stop()
        caches.cleanup()
    ordered = [results[o.id] for o in read() if o.id in results]
    print("\n" + "\n".join(summary({"machine": facts, "kind": KIND, "results": ordered})))
    if left:
        print(
            f"\nthe budget of {args.budget:.0f} minutes is over, {left} operators are left: run it again",
            file=sys.stderr,
        )
    print(f"figures: {path}; python benchmarks/report.py makes the documents from them", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
