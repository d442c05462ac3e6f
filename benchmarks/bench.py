"""`make bench`: torchroller against eager, Inductor, ONNX Runtime and OpenVINO, in turns.

python benchmarks/bench.py [--only SUBSTRING ...] [--peers a,b] [--rounds N] [--json FILE] [--markdown FILE]
                           [--budget MINUTES]

Without --json a run of all cases writes benchmarks/results/cpu-<LLVM's name of this CPU>-<cores>.json, case by case;
`python benchmarks/report.py` makes docs/benchmarks.md and the pictures from the files there. Compilers start with
empty caches, so compile seconds are cold ones.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402
from cases import CASES, Case  # noqa: E402
from contenders import CONTENDERS, INFERENCE_ONLY, available  # noqa: E402
from workers import Contender  # noqa: E402

from torchroller.host import cache_root, host_isa  # noqa: E402
from torchroller.timing import Timing, machine, summarise  # noqa: E402

DEFAULT = ["eager", "inductor", "inductor-max", "onnxruntime", "openvino", "roller"]
RESULTS = Path(__file__).parent / "results"
_BUSY_LOAD = 0.7  # load average above which something else runs on the machine
_SAME = ("processor", "isa", "cores", "threads", "versions")  # of machines whose figures may share a file
_SLOWEST = ("inductor-max", "inductor")  # to compile: left out first where time runs short


def measure(
    case: Case,
    pool: dict[str, Contender],
    names: list[str],
    rounds: int,
    threads: int,
    patience_s: float,
    in_order: bool = False,
) -> dict[str, Any]:
    """One case: everybody compiles, then they take turns.

    Models are compiled one contender after the other in fresh processes, so that their compile seconds are those of a
    user; small cases all at once, in processes that stay; or, `in_order`, one after the other in processes that stay.
    """
    model = case.group.startswith("model")
    contenders = []
    skipped = {}
    for name in names:
        reason = available(name)
        if case.dtype != torch.float32 and name in INFERENCE_ONLY:
            reason = "float32 only"
        elif case.training and name in INFERENCE_ONLY:
            reason = "inference only"
        if reason:
            skipped[name] = reason
            continue
        contender = pool.setdefault(name, Contender(name, threads))
        if model:
            contender.stop()
        contender.open(case.name)
        contenders.append(contender)
        if model or in_order:
            contender.wait(patience_s)
    if not (model or in_order):
        until = time.monotonic() + patience_s
        for contender in contenders:
            contender.wait(max(1.0, until - time.monotonic()))
    load = os.getloadavg()[0]
    for number in range(rounds):
        if sys.stderr.isatty():
            print(f"  round {number + 1}/{rounds}", end="\r", file=sys.stderr, flush=True)
        for c in contenders:
            if c.ready is not None:
                c.turn()
                time.sleep(0.01)
    rows = {}
    for c in contenders:
        c.done()
        if c.ready is None or not c.samples:
            skipped[c.name] = c.failure.splitlines()[0] if c.failure else "no samples"
            continue
        timing = summarise(c.samples)
        rows[c.name] = {
            **timing.as_dict(),
            "samples_s": c.samples,
            "compile_s": c.ready.compile_s,
            "error": c.ready.error,
            "notes": c.ready.notes,
        }
    if model:  # gigabytes of weights each
        for c in contenders:
            c.stop()
    return {"case": case.name, "group": case.group, "bar": case.bar, "flops": case.flops, "bytes": case.bytes,
            "load": round(load, 2), "compiled_alone": model or in_order, "rows": rows, "skipped": skipped}  # fmt: skip


def about(threads: int) -> dict[str, object]:
    """What a reader needs to judge the figures: processor, cores, versions, date, load, commit."""
    return {
        **machine(),
        "isa": host_isa()[0],
        "when": time.strftime("%Y-%m-%d"),
        "threads": threads,
        "load": round(os.getloadavg()[0], 2),
        "commit": _commit(),
    }


def _commit() -> str:
    try:
        said = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, text=True,
                              capture_output=True, check=True)  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.stdout.strip()


def cold_caches() -> tempfile.TemporaryDirectory[str]:
    """Empty kernel caches for every contender of this run; a saved calibration of the machine is kept."""
    folder = tempfile.TemporaryDirectory(prefix="torchroller-bench-")
    calibration = cache_root() / "devices"
    if calibration.is_dir():
        shutil.copytree(calibration, Path(folder.name) / "roller" / "devices")
    for variable, name in (("TORCHROLLER_CACHE_DIR", "roller"), ("TRITON_CACHE_DIR", "triton"),
                           ("TORCHINDUCTOR_CACHE_DIR", "inductor")):  # fmt: skip
        os.environ[variable] = str(Path(folder.name) / name)
    return folder


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


def merged(earlier: dict, results: list[dict]) -> list[dict]:
    """New results among those of an earlier run, which keep the date and the commit that they were measured with."""
    new = {r["case"]: r for r in results}
    before = {k: earlier["machine"][k] for k in ("when", "commit")}
    old = {r["case"]: {"measured": before, **r} for r in earlier["results"] if r["case"] not in new}
    order = {c.name: number for number, c in enumerate(CASES)}
    return sorted((old | new).values(), key=lambda r: order.get(r["case"], len(order)))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="cases whose name contains one of these")
    parser.add_argument("--peers", default=",".join(DEFAULT), help="contenders, comma separated")
    parser.add_argument("--rounds", type=int, default=15, help="at most 7 for models")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--patience", type=float, default=300.0, help="seconds that a contender may take to compile a case"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=25.0,
        help="minutes; when they run out, Inductor is left out (and said so)",
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--json", type=Path, help="write the figures here (default for all cases: results/)")
    target.add_argument(
        "--into",
        type=Path,
        help="replace the cases in these figures of the same machine; others keep their date",
    )
    parser.add_argument("--markdown", type=Path, help="write the table here")
    args = parser.parse_args()
    names = args.peers.split(",")
    unknown = [n for n in names if n not in CONTENDERS]
    if unknown:
        parser.error(f"unknown contenders {unknown}; there are {list(CONTENDERS)}")
    chosen = [c for c in CASES if not args.only or any(s in c.name or s == c.group for s in args.only)]
    if not chosen:
        parser.error(f"no case matches {args.only}; there are {[c.name for c in CASES]}")
    facts = about(args.threads)
    if float(str(facts["load"])) > _BUSY_LOAD:
        print(f"note: the load average is {facts['load']}: something else runs here, and ratios may suffer",
              file=sys.stderr)  # fmt: skip
    path = args.json
    if path is None and not args.only:
        path = RESULTS / f"cpu-{facts['isa']}-{facts['cores']}.json"
    earlier = json.loads(args.into.read_text()) if args.into else None
    if earlier is not None:
        path = args.into
        differing = [k for k in _SAME if earlier["machine"].get(k) != facts[k]]
        if differing:
            parser.error(
                f"{path} was measured elsewhere: {', '.join(differing)} differ; use --json for a new file"
            )
    results: list[dict] = []
    pool: dict[str, Contender] = {}
    start = time.monotonic()
    caches = cold_caches()
    try:
        for number, case in enumerate(chosen, 1):
            spent = time.monotonic() - start
            # Three fifths go to whoever comes first; what is left is shared out evenly over the cases.
            short = spent > 60.0 * args.budget * (0.6 + 0.4 * (number - 1) / len(chosen))
            peers = [n for n in names if not (short and n in _SLOWEST)]
            print(f"[{number}/{len(chosen)}, {spent / 60:.1f} min] ", end="", flush=True)
            rounds = min(args.rounds, 7) if case.group.startswith("model") else args.rounds
            result = measure(case, pool, peers, rounds, args.threads, args.patience)
            result["skipped"].update(
                {
                    n: f"left out: the run's {args.budget:.0f} minutes were nearly over"
                    for n in names
                    if n not in peers
                }
            )
            results.append(result)
            print(describe(result), flush=True)
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                figures = merged(earlier, results) if earlier else results
                path.write_text(json.dumps({"machine": facts, "results": figures}, indent=1) + "\n")
    finally:
        for contender in pool.values():
            contender.stop()
        caches.cleanup()
    if args.markdown:
        args.markdown.write_text(markdown(results, facts))
    print("\n" + markdown(results, facts))
    if path:
        print(f"figures: {path}; python benchmarks/report.py makes the documents from them", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
