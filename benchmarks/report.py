"""Makes the documents from the figures: docs/benchmarks.md, its pictures, and the README's block.

python benchmarks/report.py [--results DIR] [--docs DIR] [--readme FILE] [--check]

Reads every results/*.json that bench.py, gpu.py or operators.py wrote: one machine a file, the newest first. Nothing is
measured and nothing left out: rows that lose, contenders that failed and spreads are shown. The README shows the newest
CPU run of all cases. --check writes nothing and fails where a document is not what the figures give.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import operator_report  # noqa: E402
from plot import shares, speedups  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
OURS = ("roller", "roller-max")
NAMES = {
    "eager": "eager", "eager-graphs": "eager + CUDA graphs", "inductor": "Inductor",
    "inductor-max": "Inductor max-autotune",
    "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "roller": "roller", "roller-max": "roller max-autotune",
    "roller-graphs": "roller reduce-overhead",
}  # fmt: skip
START, END = "<!-- figures: made by benchmarks/report.py -->", "<!-- end of figures -->"
_NOISY = 0.2  # distance of the quartiles over the median from which a row is marked


def read(folder: Path) -> list[tuple[str, dict]]:
    """(name, content) of every file of figures, newest first. Raises ValueError naming a file that is none."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(path.read_text())
            data["machine"]["when"], data["results"][0]["rows"]  # noqa: B018  (they must be there)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"{path} is no file of figures of bench.py: {type(error).__name__}: {error}"
            ) from error
        found.append((path.stem, data))
    return sorted(found, key=lambda item: (item[1]["machine"]["when"], item[0]), reverse=True)


def by_group(results: list[dict]) -> dict[str, list[dict]]:
    """Cases by group; groups and cases in the order in which they were measured."""
    groups: dict[str, list[dict]] = {}
    for r in results:
        groups.setdefault(r["group"], []).append(r)
    return groups


def ours_of(result: dict) -> dict | None:
    """Our row without measuring candidates; the one that measures only where that is all there is."""
    return next((result["rows"][n] for n in OURS if n in result["rows"]), None)


def against_fastest(result: dict) -> float | None:
    """Time of the fastest other contender over ours: above 1 we are ahead. None where one of the two is missing."""
    ours = ours_of(result)
    peers = [row["median_s"] for name, row in result["rows"].items() if not name.startswith("roller")]
    return min(peers) / ours["median_s"] if ours and peers else None


def geomean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def time_text(seconds: float) -> str:
    """Milliseconds with three significant digits."""
    return f"{seconds * 1e3:#.3g}".rstrip(".") if seconds < 1 else f"{seconds * 1e3:.0f}"


def cell(row: dict | None, best: float) -> str:
    if row is None:
        return "–"
    noisy = " ~" if row["high_s"] - row["low_s"] > _NOISY * row["median_s"] else ""
    text = f"{time_text(row['median_s'])}{noisy}"
    return f"**{text}**" if row["median_s"] == best else text


def table(results: list[dict]) -> list[str]:
    """Milliseconds of every contender, and where we stand against the fastest of the others."""
    names = [n for n in NAMES if any(n in r["rows"] for r in results)]
    out = [
        "| case | " + " | ".join(NAMES[n] for n in names) + " | fastest other ÷ roller | error |",
        "|---|" + "---:|" * (len(names) + 2),
    ]
    for r in results:
        rows = r["rows"]
        best = min((row["median_s"] for row in rows.values()), default=0.0)
        ratio, ours = against_fastest(r), ours_of(r)
        cells = [cell(rows.get(n), best) for n in names]
        stand = "–" if ratio is None else f"{ratio:.2f}"
        error = "–" if ours is None else f"{ours['error']:.0e}"
        out.append(f"| {r['case']} | {' | '.join(cells)} | {stand} | {error} |")
    return out


def compile_table(results: list[dict]) -> list[str]:
    """Compile seconds of the cases that were compiled one contender after the other."""
    alone = [r for r in results if r.get("compiled_alone", r["group"].startswith("model"))]
    if not alone:
        return []
    names = [n for n in NAMES if any(n in r["rows"] for r in alone)]
    cold = "from empty caches" if all("compiled_alone" in r for r in alone) else "with caches as they were"
    out = ["", f"Seconds to build and make the first call, {cold}:", "",
           "| case | " + " | ".join(NAMES[n] for n in names) + " |", "|---|" + "---:|" * len(names)]  # fmt: skip
    for r in alone:
        cells = [f"{r['rows'][n]['compile_s']:.1f}" if n in r["rows"] else "–" for n in names]
        out.append(f"| {r['case']} | {' | '.join(cells)} |")
    return out


def standing(results: list[dict]) -> str:
    """Wins and losses in one sentence."""
    ratios = [x for r in results if (x := against_fastest(r)) is not None]
    if not ratios:
        return "No case has both our figure and another's."
    ahead = sum(x > 1 for x in ratios)
    close = sum(0.9 <= x <= 1 for x in ratios)
    return (
        f"Against the fastest of the others roller is ahead in {ahead} of {len(ratios)} cases, within 10 % in {close} "
        f"more and behind by more in {len(ratios) - ahead - close}; geometric mean {geomean(ratios):.2f}."
    )


def heading(machine: dict) -> str:
    if machine.get("device"):
        return f"{machine['device']} ({machine['processor']}, {machine['cores']} cores)"
    isa = f" ({machine['isa']})" if machine.get("isa") else ""
    return f"{machine['processor']}{isa}, {machine['cores']} cores"


def facts(machine: dict) -> str:
    """Everything that a reader needs to judge the figures, in one paragraph."""
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    load = f" Load average before the run: {machine['load']}." if "load" in machine else ""
    commit = f" Commit {machine['commit']}." if machine.get("commit") else ""
    return f"{machine['when']}, {machine['threads']} threads, Python {machine['python']}, {machine['system']}; {versions}.{load}{commit}"  # noqa: E501


def skipped(results: list[dict]) -> list[str]:
    """Who did not run what, and why: one line a contender and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for r in results:
        for name, why in r["skipped"].items():
            found.setdefault((name, why[:160]), []).append(r["case"])
    if not found:
        return []
    lines = ["", "Not run:", ""]
    for (name, why), cases in found.items():
        where = ", ".join(cases) if len(cases) < 5 else f"{len(cases)} cases"
        lines.append(f"- {NAMES.get(name, name)}, {where}: {why.replace('|', '¦')}")
    return lines


def measured_earlier(results: list[dict]) -> list[str]:
    """One line for each earlier run that some cases are from."""
    found: dict[tuple[str, str], list[str]] = {}
    for r in results:
        if "measured" in r:
            found.setdefault((r["measured"]["when"], r["measured"]["commit"]), []).append(r["case"])
    return [
        line
        for (when, commit), cases in found.items()
        for line in ("", f"Measured earlier, on {when} with commit {commit}: {', '.join(cases)}.")
    ]


def section(name: str, data: dict) -> str:
    machine, results = data["machine"], data["results"]
    if of_operators(data):
        return operator_report.section(name, heading(machine), facts(machine), data)
    out = [f"## {heading(machine)}", "", facts(machine), *measured_earlier(results), "", standing(results), "",
           f"![speed-up over eager PyTorch](images/bench-{name}.svg)"]  # fmt: skip
    for group, cases in by_group(results).items():
        ratios = [x for r in cases if (x := against_fastest(r)) is not None]
        mean = f" (geometric mean {geomean(ratios):.2f})" if ratios else ""
        out += ["", f"### {group}{mean}", "", *table(cases), *compile_table(cases)]
    out += [*skipped(results), "", f"Every sample: `benchmarks/results/{name}.json`."]
    return "\n".join(out)


def of_operators(data: dict) -> bool:
    """Whether operators.py wrote the figures."""
    return data.get("kind") == "operators"


def picture(data: dict) -> str:
    """The run as SVG text."""
    title = heading(data["machine"])
    if not of_operators(data):
        return speedups(data, title, NAMES)
    curves = {
        "fastest of the rivals ÷ top-1": operator_report.ranked(data["results"]),
        "fastest peer ÷ roller": operator_report.against(data["results"]),
    }
    return shares(
        data, f"Operators of the ROLLER evaluation, {title}", {n: v for n, v in curves.items() if v}
    )


def document(files: list[tuple[str, dict]]) -> str:
    head = """# Benchmarks

Made by `python benchmarks/report.py` from `benchmarks/results/*.json`; do not edit. `make bench` measures this machine.

Milliseconds, medians of interleaved rounds, every contender in a process of its own; bold is the fastest, `~` marks
quartiles more than 20 % of the median apart. *fastest other ÷ roller* is above 1 where roller is ahead of everyone
else. *error* is roller's largest error relative to the largest magnitude, against double precision.
"""
    return "\n".join([head, *(section(name, data) + "\n" for name, data in files)])


def newest_cpu(files: list[tuple[str, dict]]) -> tuple[str, dict] | None:
    """The run for the README: the newest one on a CPU in which both eager and we took part."""
    return next(
        (
            (n, d)
            for n, d in files
            if not d["machine"].get("device")
            and not of_operators(d)
            and any(against_fastest(r) for r in d["results"])
        ),
        None,
    )


def block(data: dict) -> str:
    """The README's paragraph and the models' table."""
    machine, results = data["machine"], data["results"]
    models = [r for r in results if r["group"].startswith("model")]
    lines = [
        "![speed-up over eager PyTorch](docs/images/bench.svg)",
        "",
        f"Measured on {heading(machine)}, {machine['when']}. {standing(results)} "
        "All rows, the losing ones too: [docs/benchmarks.md](docs/benchmarks.md).",
    ]
    if models:
        lines += ["", *table(models)]
    return "\n".join(lines)


def readme_text(text: str, made: str) -> str:
    """The README with the block between the two markers replaced. Raises ValueError where they are not there once."""
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(
            f"the README must hold {START!r} and {END!r}, once each: the figures go between them"
        )
    return re.sub(
        f"{re.escape(START)}.*{re.escape(END)}", lambda _: f"{START}\n{made}\n{END}", text, flags=re.S
    )


def documents(results: Path, docs: Path, readme: Path) -> dict[Path, str]:
    """Path and text of everything that is made."""
    files = read(results)
    if not files:
        raise ValueError(f"{results} holds no figures; `python benchmarks/bench.py` writes them")
    made = {docs / "benchmarks.md": document(files)}
    for name, data in files:
        made[docs / "images" / f"bench-{name}.svg"] = picture(data)
    shown = newest_cpu(files)
    if shown is not None:
        made[docs / "images" / "bench.svg"] = speedups(shown[1], heading(shown[1]["machine"]), NAMES)
        made[readme] = readme_text(readme.read_text(), block(shown[1]))
    return made


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something would change")
    args = parser.parse_args(argv)
    try:
        made = documents(args.results, args.docs, args.readme)
    except (ValueError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    changed = [p for p, text in made.items() if not p.exists() or p.read_text() != text]
    if args.check:
        for path in changed:
            print(f"{path} is not what the figures give; run python benchmarks/report.py", file=sys.stderr)
        return int(bool(changed))
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made[path])
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
