"""`make bench`: torchroller against eager, Inductor, ONNX Runtime and OpenVINO, in turns, as a table.

python benchmarks/bench.py [--only SUBSTRING ...] [--peers a,b] [--rounds N] [--json FILE] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402
from cases import CASES, Case  # noqa: E402
from contenders import CONTENDERS, FLOAT32_ONLY, available  # noqa: E402
from workers import Contender  # noqa: E402

from torchroller.timing import Timing, machine, summarise  # noqa: E402

DEFAULT = ["eager", "inductor", "inductor-max", "onnxruntime", "openvino", "roller"]


def measure(case: Case, names: list[str], rounds: int, threads: int, patience_s: float) -> dict[str, object]:
    """One case: compile contenders one after the other, then let them take turns."""
    contenders = []
    skipped = {}
    for name in names:
        reason = available(name)
        if case.dtype != torch.float32 and name in FLOAT32_ONLY:
            reason = "float32 only"
        if reason:
            skipped[name] = reason
            continue
        contender = Contender(name, case.name, threads)
        contender.wait(patience_s)
        contenders.append(contender)
    for _ in range(rounds):
        for c in contenders:
            if c.ready is not None:
                c.turn()
                time.sleep(0.01)
    rows = {}
    for c in contenders:
        c.stop()
        if c.ready is None or not c.samples:
            skipped[c.name] = c.failure.splitlines()[0] if c.failure else "no samples"
            continue
        timing = summarise(c.samples)
        rows[c.name] = {
            **timing.as_dict(),
            "compile_s": c.ready.compile_s,
            "error": c.ready.error,
            "notes": c.ready.notes,
        }
    return {"case": case.name, "group": case.group, "bar": case.bar, "flops": case.flops, "bytes": case.bytes,
            "rows": rows, "skipped": skipped}  # fmt: skip


def describe(result: dict) -> str:
    """One case as text: times, ratios to ours, rates."""
    rows = result["rows"]
    lines = [f"{result['case']}   goal: {result['bar']}"]
    ours = rows.get("roller")
    for name, row in sorted(rows.items(), key=lambda item: item[1]["median_s"]):
        rate = ""
        if result["flops"]:
            rate = f"{result['flops'] / row['median_s'] / 1e9:7.0f} GFLOP/s"
        elif result["bytes"]:
            rate = f"{result['bytes'] / row['median_s'] / 1e9:7.1f} GB/s"
        timing = Timing(row["median_s"], row["low_s"], row["high_s"], row["rounds"])
        ratio = f"{row['median_s'] / ours['median_s']:5.2f} x ours" if ours else ""
        busy = " ~" if timing.spread > 0.2 else ""
        lines.append(
            f"  {name:13s} {timing.median_s * 1e3:10.3f} ms{busy:2s} {rate} {ratio}  compile {row['compile_s']:6.2f} s"
            f"  error {row['error']:.1e}  {row['notes']}"
        )
    lines += [f"  {name:13s} skipped: {why}" for name, why in result["skipped"].items()]
    return "\n".join(lines)


def markdown(results: list[dict], about: dict) -> str:
    """The whole run as a table; ratios are to eager, bold is the fastest."""
    names = [n for n in CONTENDERS if any(n in r["rows"] for r in results)]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    out = [f"{about['processor']}, {about['cores']} cores, {about['when']}; {versions}.", "",
           "Milliseconds (speed-up over eager); bold is the fastest; "
           "`~` marks a spread of the quartiles above 20 %.", "",
           "| case | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]  # fmt: skip
    for r in results:
        rows = r["rows"]
        best = min((row["median_s"] for row in rows.values()), default=0.0)
        cells = []
        for n in names:
            if n not in rows:
                cells.append("–")
                continue
            row = rows[n]
            speed = f" ({rows['eager']['median_s'] / row['median_s']:.2f}×)" if "eager" in rows else ""
            busy = " ~" if (row["high_s"] - row["low_s"]) > 0.2 * row["median_s"] else ""
            text = f"{row['median_s'] * 1e3:.3f}{speed}{busy}"
            cells.append(f"**{text}**" if row["median_s"] == best else text)
        out.append(f"| {r['case']} | " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="cases whose name contains one of these")
    parser.add_argument("--peers", default=",".join(DEFAULT), help="contenders, comma separated")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--patience", type=float, default=300.0, help="seconds that a contender may take to compile"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    args = parser.parse_args()
    names = args.peers.split(",")
    unknown = [n for n in names if n not in CONTENDERS]
    if unknown:
        parser.error(f"unknown contenders {unknown}; there are {list(CONTENDERS)}")
    chosen = [c for c in CASES if not args.only or any(s in c.name or s == c.group for s in args.only)]
    if not chosen:
        parser.error(f"no case matches {args.only}; there are {[c.name for c in CASES]}")
    load = os.getloadavg()[0]
    if load > 0.7:
        print(
            f"note: the load average is {load:.1f}: something else runs here, and ratios may suffer",
            file=sys.stderr,
        )
    about = {**machine(), "when": time.strftime("%Y-%m-%d"), "threads": args.threads}
    results = []
    for number, case in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] ", end="", flush=True)
        results.append(measure(case, names, args.rounds, args.threads, args.patience))
        print(describe(results[-1]), flush=True)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps({"machine": about, "results": results}, indent=1))
    if args.markdown:
        args.markdown.write_text(markdown(results, about))
    print("\n" + markdown(results, about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
