"""The section of docs/benchmarks.md about the 119 operators, from the figures of operators.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Result = dict[str, Any]
OURS = "roller"
NAMES = {"conv2d": "convolution", "depthwise_conv2d": "depthwise convolution", "avg_pool2d": "average pooling",
         "reduce_sum": "row sum", "relu": "ReLU", "matmul": "matrix product"}  # fmt: skip
CLOSE = 0.9  # of the fastest one's speed: within 10 %


def ranked(results: list[Result]) -> list[float]:
    """Time of the fastest of the rivals over that of the program chosen without measuring: at most 1."""
    return [r["ranking"]["ratio"] for r in results if "ratio" in r.get("ranking", {})]


def against(results: list[Result]) -> list[float]:
    """Time of the fastest peer over ours: above 1 we are ahead."""
    return [x for r in results if (x := standing(r)) is not None]


def standing(result: Result) -> float | None:
    rows = result["rows"]
    peers = [row["median_s"] for name, row in rows.items() if not name.startswith(OURS)]
    return min(peers) / rows[OURS]["median_s"] if peers and OURS in rows else None


def compiled(results: list[Result]) -> list[float]:
    return [r["rows"][OURS]["compile_s"] for r in results if OURS in r["rows"]]


def geomean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def share(values: list[float], holds: Callable[[float], bool]) -> str:
    return f"{sum(map(holds, values)) / len(values):.0%}" if values else "–"


def mean(values: list[float]) -> str:
    return f"{geomean(values):.2f}" if values else "–"


def by_class(results: list[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = {}
    for r in results:
        groups.setdefault(r["group"], []).append(r)
    return groups


def class_table(results: list[Result]) -> list[str]:
    """One line a class and one for all: both claims, and compile seconds."""
    out = [
        "| class | operators | top-1 within 10 % of the best | geometric mean | ahead of the fastest | within 10 % | "
        "geometric mean | compile s |",
        "|---|" + "---:|" * 7,
    ]
    for name, group in (*by_class(results).items(), ("all", results)):
        first, rest, seconds = ranked(group), against(group), compiled(group)
        cells = [NAMES.get(name, name), str(len(group)), share(first, lambda x: x >= CLOSE), mean(first),
                 share(rest, lambda x: x > 1), share(rest, lambda x: x >= CLOSE), mean(rest),
                 f"{sum(seconds):.1f}" if seconds else "–"]  # fmt: skip
        out.append(f"| {' | '.join(cells)} |")
    return out


def summary(data: dict[str, Any]) -> list[str]:
    """The goals and where we stand, a line each, then the table by class."""
    results = data["results"]
    first, rest, seconds = ranked(results), against(results), compiled(results)
    lines = []
    if first:
        lines.append(
            f"- The program chosen without measuring is within 10 % of the fastest of its rivals for "
            f"{share(first, lambda x: x >= CLOSE)} of {len(first)} operators (goal 90 %); geometric mean "
            f"{geomean(first):.3f} (goal 0.95), worst {min(first):.2f}."
        )
    if rest:
        peers = sorted({n for r in results for n in r["rows"] if not n.startswith(OURS)})
        lines.append(
            f"- Against the fastest of {' and '.join(peers)} roller is ahead for {share(rest, lambda x: x > 1)} of "
            f"{len(rest)} operators (goal 60 %) and within 10 % or ahead for {share(rest, lambda x: x >= CLOSE)} "
            f"(goal 90 %); geometric mean {geomean(rest):.2f}."
        )
    if seconds:
        started = data["machine"].get("first_compile_s", {}).get(OURS)
        extra = f", after {started:.1f} s for imports and a first kernel" if started else ""
        lines.append(
            f"- roller compiles {len(seconds)} operators from an empty cache in {sum(seconds):.1f} s "
            f"(goal 60 s for 119){extra}."
        )
    return [*lines, "", *class_table(results)]


def operator_table(results: list[Result]) -> list[str]:
    """Every operator: milliseconds, both ratios, the program that was chosen and the best one where it differs."""
    names = sorted({n for r in results for n in r["rows"]}, key=lambda n: (n.startswith(OURS), n))
    out = [
        "| operator | batch ÷ | "
        + " | ".join(f"{n} ms" for n in names)
        + " | fastest ÷ roller | best ÷ top-1 | best |",
        "|---|" + "---:|" * (len(names) + 3) + "---|",
    ]
    for r in results:
        cells = [f"{r['rows'][n]['median_s'] * 1e3:#.3g}" if n in r["rows"] else "–" for n in names]
        against_it, found = standing(r), r.get("ranking", {})
        ratio = found.get("ratio")
        best = (
            ""
            if ratio is None or ratio == 1
            else f"{found['fastest']['kind']} `{found['fastest']['program']}`"
        )
        out.append(
            f"| {r['shape']} | {r['scale']} | {' | '.join(cells)} | "
            f"{'–' if against_it is None else f'{against_it:.2f}'} | {'–' if ratio is None else f'{ratio:.2f}'} | "
            f"{best} |"
        )
    return out


def section(name: str, title: str, told: str, data: dict[str, Any]) -> str:
    results = data["results"]
    clock = "processor time of one thread" if data["machine"].get("clock") == "thread" else "wall time"
    failed = [r["ranking"]["failure"] for r in results if "failure" in r.get("ranking", {})]
    skipped = [f"{r['case']}, {n}: {why[:160]}" for r in results for n, why in r["skipped"].items()]
    out = [f"## The operators of the ROLLER evaluation: {title}", "", f"{told} Figures are {clock}.", "",
           f"{len(results)} of the 119 operators (108 of them distinct), float32, batch divided as the table says. "
           "*best ÷ top-1* compares the first of the ranking with the fastest of its top ten and 40 random feasible "
           "programs, the least time of interleaved turns; *fastest ÷ roller* compares torch.compile with its peers.",
           "", *summary(data), "", f"![shares of the operators](images/bench-{name}.svg)", "",
           "<details><summary>Every operator</summary>", "", *operator_table(results), "", "</details>"]  # fmt: skip
    if failed or skipped:
        out += ["", "Not measured:", "", *(f"- {x.replace('|', '¦')}" for x in (*failed, *skipped))]
    return "\n".join([*out, "", f"Every figure: `benchmarks/results/{name}.json`."])
