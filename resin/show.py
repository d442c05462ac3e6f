"""Findings, diagnoses and series as text: shared by `watch`, `findings`, `explain` and `top`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DOTS = (0x01, 0x02, 0x04, 0x40, 0x08, 0x10, 0x20, 0x80)  # braille dots, column by column


def bytes_text(value: float) -> str:
    """1536 as '1.5 KiB'."""
    size, unit = abs(value), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    digits = 0 if unit == 0 or size >= 100 else 1
    return f"{'-' if value < 0 else ''}{size:.{digits}f} {_UNITS[unit]}"


def amount_text(metric: str, value: float) -> str:
    """A value with the unit that its metric's name carries."""
    if metric.endswith("_bytes"):
        return bytes_text(value)
    return f"{value:,.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.2g}"


def hours_text(hours: float) -> str:
    """A time to a limit in the unit that suits it: 0.1 as '6 min', 75 as '3.1 days'."""
    if hours < 1.0:
        return f"{max(1.0, 60.0 * hours):.0f} min"
    return f"{hours:.1f} h" if hours < 72.0 else f"{hours / 24.0:,.1f} days"


def moment_text(time_s: float | None, now_s: float | None = None) -> str:
    """A time of day, with the date where it is another day."""
    if time_s is None:
        return "-"
    then, now = time.localtime(time_s), time.localtime(now_s)
    same_day = then[:3] == now[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M", then)


def finding_lines(finding: Mapping[str, Any]) -> list[str]:
    """A finding (as JSON content, see `resin.store.records.to_json`) in a few lines."""
    entity, metric = finding["entity"], finding["metric"]
    slope = finding["slope_bytes_per_hour"]
    head = f"{finding['verdict'].upper()} {entity['key']} · {metric} · {finding['growth_class']}"
    facts = [f"since {moment_text(finding['start_s'])}"] if finding["start_s"] is not None else []
    if slope is not None:
        facts.append(f"{amount_text(metric, slope)}/h")
    if finding.get("bytes_per_step") is not None:
        facts.append(f"{amount_text(metric, finding['bytes_per_step'])} per step")
    if finding.get("hours_to_limit") is not None:
        facts.append(f"limit in {hours_text(finding['hours_to_limit'])}")
    facts.append(f"severity {finding['severity']:.2f}")
    facts.append(f"confidence {finding['confidence']:.2f}")
    lines = [head, "  " + " · ".join(facts)]
    lines += [f"  - {reason}" for reason in finding.get("why", ())]
    if finding.get("would_settle"):
        lines.append(f"  ? {finding['would_settle']}")
    return lines


def diagnosis_lines(diagnosis: Mapping[str, Any]) -> list[str]:
    """A diagnosis in a few lines: the suspects first, then what was tried."""
    lines = [
        f"  diagnosis: {diagnosis['kind']} (confidence {diagnosis['confidence']:.2f}, "
        f"the process was held up for {diagnosis['pause_ms']:.0f} ms)"
    ]
    for suspect in diagnosis["suspects"]:
        growth = f", +{bytes_text(suspect['growth_bytes'])}" if suspect["growth_bytes"] is not None else ""
        share = f", {100 * suspect['share']:.0f} % of the growth seen" if suspect["share"] is not None else ""
        lines.append(
            f"    {suspect['file']}:{suspect['line']} in {suspect['function']}{growth}{share} [{suspect['source']}]"
        )
    lines += [f"    tried {probe}" for probe in diagnosis["probes"]]
    lines += [f"    note: {note}" for note in diagnosis.get("notes", ())]
    return lines


def action_lines(actions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Actions planned or taken, one line each."""
    lines = []
    for action in actions:
        state = (
            "planned"
            if not action["applied"]
            else {True: "done", False: "failed", None: "tried"}[action["ok"]]
        )
        command = " ".join(action["command"])
        lines.append(f"  {state}: {action['name']} ({action['reason']}){': ' + command if command else ''}")
    return lines


def plot(
    times_s: Sequence[float],
    values: Sequence[float],
    *,
    metric: str,
    width: int = 72,
    height: int = 14,
    fit: Mapping[str, float] | None = None,
    limit: float | None = None,
) -> list[str]:
    """Terminal plot in braille dots: the series, its fitted line, a mark below the axis where growth starts."""
    if not times_s:
        return ["(no samples)"]
    first, last = times_s[0], times_s[-1]
    low, high = min(values), max(values)
    if limit is not None and low < limit < high * 2:
        high = max(high, limit)
    if high == low:
        high = low + max(abs(low) * 0.01, 1.0)
    span = max(last - first, 1e-9)
    cells = [[0] * width for _ in range(height)]

    def dot(time_s: float, value: float) -> None:
        x = round((time_s - first) / span * (2 * width - 1))
        y = round((high - value) / (high - low) * (4 * height - 1))
        if 0 <= x < 2 * width and 0 <= y < 4 * height:
            cells[y // 4][x // 2] |= _DOTS[(x % 2) * 4 + y % 4]

    for time_s, value in zip(times_s, values):
        dot(time_s, value)
    if fit and fit["end_s"] > fit["start_s"]:
        for step in range(0, 2 * width, 2):
            at = first + span * step / (2 * width - 1)
            if fit["start_s"] <= at <= fit["end_s"]:
                share = (at - fit["start_s"]) / (fit["end_s"] - fit["start_s"])
                dot(at, fit["start_value"] + share * (fit["end_value"] - fit["start_value"]))
    labels = {0: amount_text(metric, high), height - 1: amount_text(metric, low)}
    lines = [
        f"{labels.get(row, ''):>10} │" + "".join(chr(0x2800 + cell) for cell in cells[row])
        for row in range(height)
    ]
    lines.append(" " * 11 + "└" + "─" * width)
    left, right = moment_text(first, last), moment_text(last, last)
    lines.append(" " * 12 + left + " " * max(1, width - len(left) - len(right)) + right)
    if fit and first <= fit["start_s"] <= last:
        at = round((fit["start_s"] - first) / span * (width - 1))
        lines.append(" " * (12 + at) + f"▲ growth starts {moment_text(fit['start_s'], last)}")
    return lines
