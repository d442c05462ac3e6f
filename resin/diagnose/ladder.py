"""The ladder of probes, cheapest first, and what their results mean together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..model import Diagnosis, Finding, Suspect
from . import accounting, heapwalk, mappings, memray_attach, peers, preload, remote, stacks
from .source import function_at, growth_sites, is_library
from .target import Gone, Target, inspect

MEBIBYTE = 1048576.0
RETAINED_SHARE = 0.4  # of what the heap holds resident: above, malloc keeps about as much as the program uses
RETAINED_BYTES = 8 * MEBIBYTE


@dataclass
class Notebook:
    """What the probes wrote down so far."""

    suspects: list[Suspect] = field(default_factory=list)
    probes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pause_ms: float = 0.0
    growth: mappings.Growth | None = None
    grown: dict[str, float] = field(default_factory=dict)
    heap: heapwalk.HeapUse | None = None
    heap_before: heapwalk.HeapUse | None = None
    python_share: float | None = None
    python_bytes: float = 0.0
    window_s: float = 0.0


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
    return _conclude(target, finding, book)


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
            _types(book, ask)
            return
    reason = remote.usable(target)
    if reason is None:

        def ask_remote(wanted: dict[str, Any]) -> dict[str, Any] | None:
            return remote.ask(target, wanted, timeout_s=patience_s)

        if _believed(book, ask_remote(request), "remote_exec"):
            _types(book, ask_remote)
            return
    else:
        book.probes.append(f"remote_exec: not possible ({reason})")
    if target.python is not None:
        _stacks(target, book, seconds)


def _types(book: Notebook, ask: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Which objects became more, where tracemalloc saw too little of the growth: tensors and the like."""
    if book.python_share is None or book.python_share > 0.3:
        return
    found = ask({"op": "types", "seconds": 1.0}) or {}
    grown = found.get("growth")
    if not isinstance(grown, list):
        return
    book.pause_ms += float(found.get("pause_ms", 0.0))
    told = [f"{g['type']} +{g['count']}" for g in grown[:4] if isinstance(g, dict) and g.get("count", 0) >= 3]
    book.probes.append("types: " + (", ".join(told) + " in 1 s" if told else "no kind of object became more"))


def _believed(book: Notebook, found: dict[str, Any] | None, source: str) -> bool:
    """The window's answer, written down; one that is not what the helper writes is told and left."""
    try:
        return _window(book, found, source)
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
    book.python_share = min(1.0, total / resident) if resident > 0 else None
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


def _conclude(target: Target, finding: Finding | None, book: Notebook) -> Diagnosis:
    kind, confidence = _kind(target, finding, book)
    if kind in ("fds", "threads", "shm"):
        ranked = sorted(book.grown.items(), key=lambda item: -item[1])
        book.notes.append("grew while watched: " + ", ".join(f"{n} +{v:.0f}" for n, v in ranked[:5]))
    if not target.readable:
        book.notes.append(
            "memory of the target may not be read: run as the same user or with CAP_SYS_PTRACE, "
            "or set kernel.yama.ptrace_scope to 0"
        )
    return Diagnosis(
        finding_id=None if finding is None else finding.id,
        pid=target.pid,
        kind=kind,
        suspects=tuple(book.suspects[:10]),
        confidence=confidence,
        pause_ms=book.pause_ms,
        probes=tuple(book.probes),
        notes=tuple(book.notes),
    )


def _expected_growth(finding: Finding | None, book: Notebook) -> float:
    """Bytes that should have come in the window: by the finding's slope, else what the mappings gained."""
    if finding is not None and finding.slope_bytes_per_hour and finding.metric.endswith("_bytes"):
        return finding.slope_bytes_per_hour / 3600.0 * book.window_s
    return float(book.growth.total_bytes) if book.growth is not None else 0.0


def _kind(target: Target, finding: Finding | None, book: Notebook) -> tuple[str, float]:
    metric = "" if finding is None else finding.metric
    if metric == "fds" or book.grown.get("fds", 0) >= 3:
        return "fds", 0.8
    if metric == "threads" or book.grown.get("threads", 0) >= 3:
        return "threads", 0.8
    kinds = {} if book.growth is None else book.growth.by_kind
    total = sum(v for v in kinds.values() if v > 0)
    if metric in ("shmem_bytes", "dev_shm_bytes") or (total > MEBIBYTE and kinds.get("shm", 0) > 0.5 * total):
        return "shm", 0.8
    # The reading before the window: what tracing has used and freed since would count as retained.
    heap = book.heap_before or book.heap
    expected = _expected_growth(finding, book)
    python_explains = book.python_bytes > 0.3 * expected if expected > 0 else False
    if (
        heap is not None
        and not python_explains
        and heap.retained_bytes >= max(RETAINED_BYTES, RETAINED_SHARE * heap.resident_bytes)
    ):
        book.notes.append(
            f"malloc keeps {heap.retained_bytes / MEBIBYTE:.0f} MiB of {heap.resident_bytes / MEBIBYTE:.0f} MiB "
            "resident free between chunks in use: trim, or set MALLOC_ARENA_MAX or MALLOC_TRIM_THRESHOLD_"
        )
        return "fragmentation", min(0.9, 0.4 + 0.6 * heap.retained_bytes / heap.resident_bytes)
    if total > MEBIBYTE and kinds.get("file", 0) > 0.6 * total:
        book.notes.append(
            "resident pages of mapped files grow; the kernel takes them back when it needs them"
        )
        return "file-mapping", 0.7
    if any(s.source == "tracemalloc" for s in book.suspects):
        share = book.python_share if book.python_share is not None else 0.5
        return "python-heap", 0.5 + 0.45 * min(1.0, share)
    if any(s.source == "memray" for s in book.suspects):
        return "python-heap", 0.8
    if target.python is not None and book.suspects:
        return "python-heap", 0.4
    if kinds.get("heap", 0) + kinds.get("arena", 0) + kinds.get("anon", 0) > 0.6 * max(total, 1.0):
        return "native-heap", 0.5 if total > MEBIBYTE else 0.2
    return "unknown", 0.0


__all__ = ["Gone", "diagnose"]
