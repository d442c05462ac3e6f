"""resin, measured: precision, recall, start time, class, culprit line, speed. `python benchmarks/resin_bench.py`.

Parts: traces (real container traces, as they are and with injected leaks), series (simulated), families (what
machines do, by other generators), corpus (the
programs of resin.simulate run for real under `resin watch`), speed. The real traces are the file named by
RESIN_TRACES, else shared/data/genai_pods_dev.csv.gz beside the repository; that part is left out without it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from resin.detect import DEFAULT, judge_many  # noqa: E402
from resin.detect.files import read_trace  # noqa: E402
from resin.model import Entity, Finding, Series  # noqa: E402
from resin.simulate import CASES, inject_ramp, labelled_series  # noqa: E402
from resin.simulate.families import LEAKING, families  # noqa: E402
from resin.simulate.run import Result, run_case  # noqa: E402
from resin.simulate.series import noise_slope  # noqa: E402

SLOPES_PER_HOUR = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)  # of the container's limit
BEGINS = ("4 h before the end", 0.25, 0.5, 0.75)
PARTS = ("traces", "series", "families", "speed", "corpus")


def traces_file() -> Path | None:
    """The real traces, where they are: RESIN_TRACES, else beside the checkout or beside its work trees."""
    named = os.environ.get("RESIN_TRACES")
    if named:
        return Path(named)
    above = Path(__file__).resolve().parents[2:4]
    candidates = [directory / "shared/data/genai_pods_dev.csv.gz" for directory in above]
    return next((path for path in candidates if path.exists()), None)


def on_traces(path: Path) -> dict[str, Any]:
    """False alarms on the traces as they are and on their beginnings; recall on injected ramps."""
    series = read_trace(path).series
    findings = judge_many(series)
    beginnings = [
        replace(s, times_s=s.times_s[:n], values=s.values[:n])
        for s in series
        for n in range(60, len(s.values), 60)
    ]
    early = [f for f in judge_many(beginnings) if f.verdict == "leak"]
    usable = [
        s
        for s, f in zip(series, findings)
        if f.verdict != "leak" and s.times_s and s.times_s[-1] - s.times_s[0] > 6 * 3600.0
    ]
    return {
        "containers": len(series),
        "flagged_as_leak": [f.entity.host for f in findings if f.verdict == "leak"],
        "hourly_judgements": len(beginnings),
        "hourly_alarms": len(early),
        "containers_with_hourly_alarms": len({f.entity.host for f in early}),
        "linear_rule_1h_4h_containers": sum(linear_rule(s) for s in series),
        "injected": [_injected(usable, begin, slope) for begin in BEGINS for slope in SLOPES_PER_HOUR],
        "injected_at_twice_the_noise": [_injected(usable, begin, None) for begin in BEGINS],
        "halves": _halves(usable),
    }


def linear_rule(series: Series, *, window_s: float = 3600.0, horizon_s: float = 4 * 3600.0) -> bool:
    """The usual alert: a line through the last hour reaches the limit within four. Checked every 15 minutes."""
    t, y = np.asarray(series.times_s), np.asarray(series.values)
    at = t[0] + window_s if t.size else 0.0
    while t.size and at <= t[-1]:
        inside = (t > at - window_s) & (t <= at)
        if np.count_nonzero(inside) >= 10:
            slope, level = np.polyfit(t[inside] - at, y[inside], 1)
            if level + slope * horizon_s > (series.limit_bytes or np.inf):
                return True
        at += 900.0
    return False


def _start_of(series: Series, begin: str | float) -> float:
    first, last = series.times_s[0], series.times_s[-1]
    return last - 4 * 3600.0 if isinstance(begin, str) else first + begin * (last - first)


def _injected(series: list[Series], begin: str | float, slope: float | None) -> dict[str, Any]:
    """Recall for one begin and slope; slope None: twice the container's own noise slope over 4 h.

    Leaks that would take more than 30 days to fill the limit are counted apart: resin calls them immaterial.
    """
    leaking, starts, asked = [], [], []
    slow = 0
    for one in series:
        own = 2.0 * (noise_slope(one) or 0.0) if slope is None else slope
        if own <= 0 or ((one.limit_bytes or 0.0) - one.values[-1]) / own > DEFAULT.horizon_hours:
            slow += 1
            continue
        start = _start_of(one, begin)
        leaking.append(inject_ramp(one, start_s=start, slope_per_hour=own))
        starts.append(start)
        asked.append(own)
    findings = judge_many(leaking)
    hits = [f.verdict == "leak" for f in findings]
    near = [
        abs((f.start_s or 0.0) - start) <= 0.1 * (s.times_s[-1] - s.times_s[0])
        for f, start, s, hit in zip(findings, starts, leaking, hits)
        if hit
    ]
    right = [
        abs((f.slope_bytes_per_hour or 0.0) - own) <= 0.25 * own
        for f, own, hit in zip(findings, asked, hits)
        if hit
    ]
    return {
        "begin": begin,
        "slope_per_hour": slope,
        "median_slope_per_hour": float(np.median(asked)) if asked else None,
        "leaks": len(leaking),
        "left_out_over_30_days_to_the_limit": slow,
        "found": sum(hits),
        "recall": _share(sum(hits), len(leaking)),
        "start_within_10_percent": _share(sum(near), len(near)),
        "slope_within_25_percent": _share(sum(right), len(right)),
    }


def _halves(series: list[Series]) -> list[dict[str, Any]]:
    """The same figures on two halves of the containers: how much depends on which were looked at."""
    ordered = sorted(series, key=lambda s: s.entity.host)
    return [
        {"half": name, **_injected(part, "4 h before the end", 0.02)}
        for name, part in (("even", ordered[::2]), ("odd", ordered[1::2]))
    ]


def on_series(count: int, seed: int) -> dict[str, Any]:
    """Simulated series: precision, recall, class, start."""
    labelled = labelled_series(count, seed=seed)
    pairs = list(zip(labelled, judge_many([one.series for one in labelled])))
    hit = [(one, f) for one, f in pairs if one.leaks and f.verdict == "leak"]
    false = [(one, f) for one, f in pairs if not one.leaks and f.verdict == "leak"]
    near = [
        abs((f.start_s or 0.0) - (one.start_s or 0.0))
        <= 0.1 * (one.series.times_s[-1] - one.series.times_s[0])
        for one, f in hit
    ]
    confused = Counter((one.growth_class, f.growth_class) for one, f in pairs)
    return {
        "series": count,
        "seed": seed,
        "precision": _share(len(hit), len(hit) + len(false)),
        "recall": _share(len(hit), sum(one.leaks for one in labelled)),
        "class_right": _share(sum(one.growth_class == f.growth_class for one, f in pairs), count),
        "start_within_10_percent": _share(sum(near), len(near)),
        "confused": {f"{a} -> {b}": n for (a, b), n in sorted(confused.items()) if a != b},
    }


def on_families(per_family: int, seed: int) -> dict[str, Any]:
    """Series by generators that the detector was not shaped on."""
    members = families(per_family, seed=seed)
    findings = judge_many([m.series for m in members])
    by_family: dict[str, list[int]] = {}
    starts = []
    for member, finding in zip(members, findings):
        counted = by_family.setdefault(member.family, [0, 0])
        counted[0] += 1
        if finding.verdict == "leak":
            counted[1] += 1
            if member.start_s is not None:
                length = member.series.times_s[-1] - member.series.times_s[0]
                starts.append(abs((finding.start_s or 0.0) - member.start_s) <= 0.1 * length)
    hits = sum(n for name, (_, n) in by_family.items() if name in LEAKING)
    false = sum(n for name, (_, n) in by_family.items() if name not in LEAKING)
    return {
        "series": len(members),
        "seed": seed,
        "precision": _share(hits, hits + false),
        "recall": _share(hits, sum(m.start_s is not None for m in members)),
        "start_within_10_percent": _share(sum(starts), len(starts)),
        "flagged": {name: f"{n} of {count}" for name, (count, n) in by_family.items()},
    }


def on_corpus(seconds: float, parallel: int) -> dict[str, Any]:
    """The programs, for real. Those that move counters of the whole machine run alone at the end."""
    cases = [c for c in CASES if c.available]
    with ThreadPoolExecutor(parallel) as pool:
        results = list(pool.map(lambda c: run_case(c, seconds=seconds), [c for c in cases if not c.alone]))
    results += [run_case(c, seconds=seconds) for c in cases if c.alone]
    return corpus_figures(results, seconds)


def corpus_figures(results: Sequence[Result], seconds: float) -> dict[str, Any]:
    """Shares over the programs that ran. A culprit line is asked of each that leaks, found or not."""
    leaking = [r for r in results if r.case.leaks]
    found = [r for r in leaking if r.flagged]
    false = [r for r in results if not r.case.leaks and r.flagged]
    named = [r for r in leaking if r.line_rank is not None and r.line_rank <= 3]
    return {
        "programs": len(results),
        "left_out": [c.name for c in CASES if not c.available],
        "seconds": seconds,
        "precision": _share(len(found), len(found) + len(false)),
        "recall": _share(len(found), len(leaking)),
        "verdict_right": _share(sum(r.right_verdict for r in results), len(results)),
        "class_right": _share(sum(r.right_class for r in results), len(results)),
        "line_in_top_three": _share(len(named), len(leaking)),
        "largest_pause_ms": max((r.pause_ms for r in results if r.pause_ms is not None), default=None),
        "results": [
            {
                "program": r.case.name,
                "expected": "/".join(r.case.verdicts),
                "verdict": r.verdict,
                "class": r.growth_class,
                "class_right": r.right_class,
                "metric": r.metric,
                "line_rank": r.line_rank,
                "pause_ms": None if r.pause_ms is None else round(r.pause_ms, 1),
            }
            for r in results
        ],
    }


def on_speed(series: int, points: int) -> dict[str, Any]:
    """Time of `judge_many` over series of four kinds in turn: quiet, random walk, leak, switching load."""
    rng = np.random.default_rng(0)
    t = tuple((np.arange(points) * 60.0).tolist())
    made = []
    for i in range(series):
        y = 5e8 + rng.normal(0.0, 2e6, points)
        if i % 4 == 1:
            y += np.cumsum(rng.normal(0.0, 1e6, points))
        elif i % 4 == 2:
            y += np.clip(np.arange(points) - 0.3 * points, 0.0, None) * 1e6
        elif i % 4 == 3:
            y += 4e8 * (np.sin(np.arange(points) / 30.0) > 0)
        entity = Entity(f"h{i % 1000}", f"c{i // 1000}", i, 0.0)
        made.append(Series(entity, "anon_bytes", t, tuple(y.tolist()), 4e9))
    started = time.perf_counter()
    findings: list[Finding] = judge_many(made)
    seconds = time.perf_counter() - started
    return {
        "series": series,
        "points": points,
        "seconds": round(seconds, 3),
        "series_per_second": round(series / seconds, 1),
        "leaks": sum(f.verdict == "leak" for f in findings),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def as_markdown(report: dict[str, Any]) -> str:
    """The figures as text with tables."""
    lines = [f"{report['machine']}, Python {report['python']}, numpy {report['numpy']}", ""]
    if "traces" in report:
        lines += _traces_text(report["traces"])
    if "series" in report:
        s = report["series"]
        lines += [
            f"Simulated series ({s['series']}): precision {s['precision']}, recall {s['recall']}, class right "
            f"{s['class_right']}, start within 10 % {s['start_within_10_percent']}.",
            "",
        ]
    if "families" in report:
        s = report["families"]
        flagged = "; ".join(f"{name} {n}" for name, n in s["flagged"].items())
        lines += [
            f"Families by other generators ({s['series']} series): precision {s['precision']}, recall {s['recall']}, "
            f"start within 10 % {s['start_within_10_percent']}. Flagged: {flagged}.",
            "",
        ]
    if "corpus" in report:
        lines += _corpus_text(report["corpus"])
    if "speed" in report:
        s = report["speed"]
        lines.append(f"Speed: {s['series']} series of {s['points']} points in {s['seconds']} s.")
    return "\n".join(lines)


def _traces_text(t: dict[str, Any]) -> list[str]:
    lines = [
        f"Real traces, {t['containers']} containers: {len(t['flagged_as_leak'])} flagged as leak. Judged every hour "
        f"of their lives, {t['hourly_alarms']} of {t['hourly_judgements']} judgements say leak, in "
        f"{t['containers_with_hourly_alarms']} containers (a linear 1 h / 4 h rule alerts on "
        f"{t['linear_rule_1h_4h_containers']}).",
        "",
        "| leak begins | slope per hour | leaks | too slow to matter | recall | start within 10 % "
        "| slope within 25 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in t["injected"] + t["injected_at_twice_the_noise"]:
        begin = (
            row["begin"] if isinstance(row["begin"], str) else f"at {100 * row['begin']:.0f} % of the trace"
        )
        if row["slope_per_hour"] is None:
            slope = f"twice its noise (median {100 * row['median_slope_per_hour']:.2f} % of limit)"
        else:
            slope = f"{100 * row['slope_per_hour']:.1f} % of limit"
        lines.append(
            f"| {begin} | {slope} | {row['leaks']} | {row['left_out_over_30_days_to_the_limit']} | "
            f"{row['recall']} | {row['start_within_10_percent']} | "
            f"{row['slope_within_25_percent']} |"
        )
    halves = ", ".join(f"{h['half']} {h['recall']}" for h in t["halves"])
    return [
        *lines,
        "",
        f"Recall on two halves of the containers, 2 % of limit per hour for 4 h: {halves}.",
        "",
    ]


def _corpus_text(c: dict[str, Any]) -> list[str]:
    lines = [
        f"Corpus, {c['programs']} programs of {c['seconds']:.0f} s: precision {c['precision']}, recall {c['recall']}, "
        f"verdict right {c['verdict_right']}, class right {c['class_right']}, culprit line in the top three "
        f"{c['line_in_top_three']}, longest pause {c['largest_pause_ms'] or 0:.0f} ms.",
        "",
        "| program | expected | verdict | class | metric | culprit line ranked | pause ms |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['program']} | {r['expected']} | {r['verdict']} | {r['class']} | {r['metric']} | "
        f"{r['line_rank'] or '-'} | {'-' if r['pause_ms'] is None else r['pause_ms']} |"
        for r in c["results"]
    ]
    return [*lines, ""]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated; default: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="run time of each program of the corpus")
    parser.add_argument("--parallel", type=int, default=4, help="programs of the corpus run at one time")
    args = parser.parse_args()
    parts = args.parts.split(",")
    unknown = set(parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    path = traces_file()
    if "traces" in parts and path is not None:
        report["traces"] = on_traces(path)
    elif "traces" in parts:
        print("no real traces at hand (RESIN_TRACES): that part is left out", file=sys.stderr)
    if "series" in parts:
        report["series"] = on_series(1400, seed=20260101)
    if "families" in parts:
        report["families"] = on_families(36, seed=20260707)
    if "speed" in parts:
        report["speed"] = on_speed(20_000, 1_000)
    if "corpus" in parts:
        report["corpus"] = on_corpus(args.seconds, args.parallel)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    text = as_markdown(report)
    if args.markdown:
        Path(args.markdown).write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
