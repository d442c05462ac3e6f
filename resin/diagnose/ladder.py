"""The ladder of probes, cheapest first."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from ..model import Diagnosis, Finding, Suspect
from . import accounting, heapwalk, mappings, memray_attach, peers, preload, remote, stacks
from .conclusion import COMPARABLE_BYTES, MEBIBYTE, Notebook, conclude
from .source import function_at, growth_sites, is_library
from .target import Target, inspect

# Of what malloc gained in all: a line that gained more must have given most of it back elsewhere.
LEAST_SHARE, MOST_SHARE = 0.1, 2.0


def diagnose(
    pid: int,
    finding: Finding | None = None,
    *,
    seconds: float = 5.0,
    allow_attach: bool = False,
) -> Diagnosis:
    """Find out what grows in process `pid` and, where Python code is to blame, at which line.

    Takes about `seconds` (20 at most are useful) and changes nothing in the target unless the target carries
    resin's helper or runs Python 3.14: then its own allocations are traced for that long. `allow_attach` permits
    memray's debugger attach as well. Raises Gone when there is no such process; anything that fails later is a
    line in `probes`, never an exception.
    """
    target = inspect(pid)
    book = Notebook()
    before = _try(book, "mappings", lambda: mappings.read_smaps(pid))
    held = accounting.holdings(pid)
    if before is not None and target.readable:
        book.heap_before = _try(book, "heap walk", lambda: _quietest_heap(pid))
    beside = peers.peers_of(target)
    started = time.monotonic()
    _inside_or_outside(target, book, seconds)
    time.sleep(max(0.0, started + min(seconds, 1.0) - time.monotonic()))
    book.grown = accounting.difference(held, accounting.holdings(pid))
    after = _try(book, "mappings", lambda: mappings.read_smaps(pid)) if before is not None else None
    if before is not None and after is not None:
        book.growth = mappings.growth(before, after)
        compared = peers.compare(beside, peers.peers_of(target), book.growth.total_bytes)
        if compared is not None:
            book.notes.append(compared)
        book.probes.append(f"mappings: {book.growth.total_bytes / MEBIBYTE:+.1f} MiB in the time watched")
        if target.readable:
            book.heap = _try(book, "heap walk", lambda: heapwalk.walk(pid, after))
    if book.heap is not None:
        book.probes.append(
            f"heap walk: {book.heap.used_bytes / MEBIBYTE:.1f} MiB in use, "
            f"{book.heap.retained_bytes / MEBIBYTE:.1f} MiB free but resident, {book.heap.heaps} heaps"
        )
    if allow_attach and not _has_line(book):
        _attach(target, book, seconds)
    return conclude(target, finding, book)


def _quietest_heap(pid: int, readings: int = 4, pause_s: float = 0.3) -> heapwalk.HeapUse | None:
    """The heap at the moment of several when most of it was free: in the midst of a request it is all in use."""
    best: heapwalk.HeapUse | None = None
    for reading in range(readings):
        if reading:
            time.sleep(pause_s)
        found = heapwalk.walk(pid, mappings.read_smaps(pid))
        if found is None:
            return best
        if best is None or found.retained_bytes > best.retained_bytes:
            best = found
    return best


def _try(book: Notebook, name: str, probe: Callable[[], Any]) -> Any:
    try:
        return probe()
    except OSError as error:
        book.probes.append(f"{name}: not possible ({error.strerror or error})")
    except ValueError as error:
        book.probes.append(f"{name}: unreadable ({error})")
    return None


def _inside_or_outside(target: Target, book: Notebook, seconds: float) -> None:
    """An allocation window inside the target where there is a way in, else stacks from outside."""
    request = {"op": "window", "seconds": seconds, "frames": 10}
    control = preload.control_dir_of(target.pid)
    patience_s = 3.0 * seconds + 10.0
    if control is not None:

        def ask(wanted: dict[str, Any]) -> dict[str, Any] | None:
            return preload.ask(control, target.pid, wanted, timeout_s=patience_s)

        if _believed(book, ask(request), "helper"):
            _look_for_native(book, ask)
            return
    reason = remote.usable(target)
    if reason is None:

        def ask_remote(wanted: dict[str, Any]) -> dict[str, Any] | None:
            return remote.ask(target, wanted, timeout_s=patience_s)

        if _believed(book, ask_remote(request), "remote_exec"):
            _look_for_native(book, ask_remote)
            return
    else:
        book.probes.append(f"remote_exec: not possible ({reason})")
    if target.python is not None:
        _stacks(target, book, seconds)


def _look_for_native(book: Notebook, ask: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Where tracemalloc saw too little of the growth: which objects became more, and who calls malloc."""
    if not book.looks_native:
        return
    found = ask({"op": "types", "seconds": 1.0}) or {}
    grown = found.get("growth")
    if isinstance(grown, list):
        book.pause_ms += float(found.get("pause_ms", 0.0))
        told = [
            f"{g['type']} +{g['count']}" for g in grown[:4] if isinstance(g, dict) and g.get("count", 0) >= 3
        ]
        book.held = tuple(told)
        book.probes.append(
            "types: " + (", ".join(told) + " in 1 s" if told else "no kind of object became more")
        )
    _believed(book, ask({"op": "ledger", "seconds": 2.0}), "ledger", _ledger)


def _ledger(book: Notebook, found: dict[str, Any] | None, source: str) -> bool:
    """Lines after which malloc holds more; what they gave back elsewhere does not count."""
    if found is None or "error" in found:
        book.probes.append(f"{source}: {'no answer in time' if found is None else found['error']}")
        return False
    total = float(found["growth_bytes"])
    book.pause_ms += float(found["pause_ms"])
    lines = [r for r in found["lines"] if LEAST_SHARE * total <= r["own_bytes"] <= MOST_SHARE * total]
    waited = [r for r in found["waited"] if r["bytes"] >= LEAST_SHARE * total]
    book.probes.append(
        f"{source}: {found['events']} line events in {found['seconds']:.1f} s, malloc {total / MEBIBYTE:+.2f} MiB; "
        f"lines that left it with more: {len(lines)}, others gave it back elsewhere"
    )
    if total < COMPARABLE_BYTES:
        return True
    suspects = [
        Suspect(
            r["file"], r["line"], r["function"], r["own_bytes"], min(1.0, r["own_bytes"] / total), "allocator"
        )
        for r in lines
    ]
    if not suspects:
        book.notes += [
            f"malloc gained {r['bytes'] / MEBIBYTE:.1f} MiB while {r['file']}:{r['line']} waited: "
            "another thread allocates"
            for r in waited[:2]
        ]
    known = {(s.file, s.line) for s in suspects} | {(r["file"], r["line"]) for r in waited}
    others = [s for s in book.suspects if (s.file, s.line) not in known]
    if book.held:  # where the objects were made, and where their memory came from: by turns
        made = [s for s in others if s.source == "tracemalloc"]
        pairs = itertools.zip_longest(made, suspects)
        suspects = [s for pair in pairs for s in pair if s is not None]
        others = [s for s in others if s.source != "tracemalloc"]
    book.suspects[:] = suspects + others
    return True


def _believed(
    book: Notebook,
    found: dict[str, Any] | None,
    source: str,
    write_down: Callable[[Notebook, dict[str, Any] | None, str], bool] | None = None,
) -> bool:
    """The helper's answer, written down; one that is not what the helper writes is told and left."""
    try:
        return (write_down or _window)(book, found, source)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        book.probes.append(f"{source}: the answer is not understood ({type(error).__name__}: {error})")
        return False


def _window(book: Notebook, found: dict[str, Any] | None, source: str) -> bool:
    if found is None:
        book.probes.append(f"{source}: no answer in time; the target was busy in C code or has ended")
        return False
    if "error" in found:
        book.probes.append(f"{source}: {found['error']}")
        return False
    book.pause_ms += float(found["pause_ms"])
    total = float(found["python_growth_bytes"]) or 1.0
    resident = float(found["resident_growth_bytes"])
    ranked: dict[tuple[str, int], float] = {}
    for place in found["places"]:
        frame = _blame(place["stack"])
        ranked[frame] = ranked.get(frame, 0.0) + float(place["steady_bytes"])
    for (file, line), size in sorted(ranked.items(), key=lambda item: -item[1]):
        book.suspects.append(
            Suspect(file, line, function_at(file, line), size, min(1.0, size / total), "tracemalloc")
        )
    # Memory of tensors and C libraries: the lines that ran while the resident set grew.
    if resident > 0 and found["running_total_bytes"] > 2.0 * total:
        for place in found["running"][:5]:
            share = place["bytes"] / found["running_total_bytes"]
            known = {(s.file, s.line) for s in book.suspects}
            if (place["file"], place["line"]) not in known:
                book.suspects.append(
                    Suspect(place["file"], place["line"], place["function"], place["bytes"], share, "running")
                )
    book.python_bytes, book.window_s = float(found["python_growth_bytes"]), float(found["seconds"])
    book.resident_bytes = resident
    book.python_share = min(1.0, total / resident) if resident >= COMPARABLE_BYTES else None
    book.probes.append(
        f"{source}: tracemalloc for {found['seconds']:.1f} s, {total / MEBIBYTE:.2f} MiB kept by Python code, "
        f"resident {resident / MEBIBYTE:+.2f} MiB"
        + (f", {found['elided']} smaller places left out" if found["elided"] else "")
    )
    return True


def _blame(stack: list[list[Any]]) -> tuple[str, int]:
    """Innermost frame of the user's code; stacks come outermost first."""
    for file, line in reversed(stack):
        if not is_library(file):
            return file, int(line)
    file, line = stack[-1]
    return file, int(line)


def _stacks(target: Target, book: Notebook, seconds: float) -> None:
    found = stacks.sample(target.pid, seconds)
    if found.reason is not None and not found.samples:
        book.probes.append(f"py-spy: {found.reason}")
        return
    book.pause_ms += found.pause_ms
    book.probes.append(
        f"py-spy: {found.samples} stacks beside {found.grown_bytes / MEBIBYTE:.2f} MiB of growth, target not paused"
    )
    met = {(file, name) for file, _, name in found.seen}
    sites = growth_sites(found.files)
    sites.sort(key=lambda s: (s.file, s.function) not in met)
    book.container_grows = bool(sites)
    for site in sites[:3]:
        book.suspects.append(Suspect(site.file, site.line, site.function, None, None, "source"))
        book.notes.append(
            f"{site.file}:{site.line} adds to {site.container}, which outlives the call; "
            "nothing in that file takes out of it"
        )
    total = max(found.grown_bytes, 1)
    for (file, line, name), size in found.by_line.most_common(5):
        if (file, line) not in {(s.file, s.line) for s in book.suspects}:
            book.suspects.append(Suspect(file, line, name, float(size), size / total, "py-spy"))
    if not book.suspects:
        for (file, line, name), count in found.seen.most_common(3):
            book.suspects.append(Suspect(file, line, name, None, count / found.samples, "py-spy"))


def _attach(target: Target, book: Notebook, seconds: float) -> None:
    reason = memray_attach.usable(target)
    if reason is not None:
        book.probes.append(f"memray attach: not possible ({reason})")
        return
    suspects, pause_ms, outcome = memray_attach.run(target.pid, seconds)
    book.pause_ms += pause_ms
    book.probes.append(outcome)
    book.suspects[:0] = suspects


def _has_line(book: Notebook) -> bool:
    return any(s.source in ("tracemalloc", "memray") for s in book.suspects)
