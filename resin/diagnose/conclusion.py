"""What the probes' results mean together: the kind of growth, how sure, and which suspects come first."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..model import Diagnosis, Finding, Suspect
from . import heapwalk, mappings
from .target import Target

MEBIBYTE = 1048576.0
RETAINED_SHARE = 0.4  # of what the heap holds resident: above, malloc keeps about as much as the program uses
RETAINED_BYTES = 8 * MEBIBYTE
EXPLAINED_SHARE = 0.3  # of the growth seen by tracemalloc: below, most of it is not Python's own
# Growth in a window below which shares say nothing: two top pads of glibc's heap, one arena of pymalloc's.
COMPARABLE_BYTES = 0.25 * MEBIBYTE


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
    python_share: float | None = None  # of the resident growth in the window; None where that was too little
    python_bytes: float = 0.0
    resident_bytes: float = 0.0  # growth in the window, without what tracing itself took
    window_s: float = 0.0
    held: tuple[str, ...] = ()  # kinds of Python objects that became more
    container_grows: bool = False  # the source adds to something that lasts and never takes out of it

    @property
    def looks_native(self) -> bool:
        """More came in the window than tracemalloc can explain: it sees only what Python's allocators gave."""
        return self.python_share is not None and self.python_share < EXPLAINED_SHARE


def conclude(target: Target, finding: Finding | None, book: Notebook) -> Diagnosis:
    """The diagnosis that the notebook supports; notes of what to make of it are added."""
    kind, confidence = _kind(target, finding, book)
    if kind in ("fds", "threads", "shm"):
        ranked = sorted(book.grown.items(), key=lambda item: -item[1])
        book.notes.append("grew while watched: " + ", ".join(f"{n} +{v:.0f}" for n, v in ranked[:5]))
    if kind == "native-heap":
        _describe_native(target, book)
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


def _describe_native(target: Target, book: Notebook) -> None:
    if book.looks_native:
        text = (
            f"{book.resident_bytes / MEBIBYTE:.1f} MiB came while tracemalloc saw {book.python_bytes / MEBIBYTE:.2f} "
            "MiB: the rest is of native code (a C extension, a library, tensors)"
        )
        if book.held:
            text += f"; Python objects hold on to it: {', '.join(book.held)}"
        book.notes.append(text)
    if book.heap is not None and book.heap_before is not None:
        more = heapwalk.grown_sizes(book.heap_before, book.heap)
        told = [f"{count:,} of {size:,} bytes" for size, count in more if count * size >= 65536]
        if told:
            book.notes.append("blocks that malloc gave out and did not get back: " + ", ".join(told))
    if not book.suspects:
        book.notes.append(
            "no line is known: "
            + (
                "start the program under `resin watch`, or with memray, to see which line calls the native code"
                if target.python is not None
                else "a heap profiler at the next start (heaptrack, or jemalloc's) tells which function allocates"
            )
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
    python_explains = book.python_bytes > EXPLAINED_SHARE * expected if expected > 0 else False
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
    return _heap_kind(target, book, kinds, total)


def _heap_kind(target: Target, book: Notebook, kinds: dict[str, int], total: float) -> tuple[str, float]:
    """Python's memory or native code's, and how sure."""
    sources = {s.source for s in book.suspects}
    if book.python_share is not None:  # a window in which enough came to compare
        if not book.looks_native:
            return "python-heap", 0.5 + 0.45 * book.python_share
        missing = 1.0 - book.python_share
        if "allocator" in sources or book.held:
            return "native-heap", 0.4 + 0.5 * missing
        return "native-heap", 0.2 + 0.4 * missing
    if "tracemalloc" in sources:
        return "python-heap", 0.5
    if "memray" in sources:  # its lines are exact, but they do not tell whose allocator it was
        return "python-heap", 0.6
    heap = kinds.get("heap", 0) + kinds.get("arena", 0)
    if target.python is not None and book.suspects:
        if not book.container_grows and heap > 0.6 * max(total, MEBIBYTE):
            book.notes.append(
                "malloc's heap grows and no container in the source does: native code, or objects of more than "
                "512 bytes that something else holds"
            )
            return "native-heap", 0.4
        return "python-heap", 0.4
    if heap + kinds.get("anon", 0) > 0.6 * max(total, 1.0):
        return "native-heap", 0.5 if total > MEBIBYTE else 0.2
    return "unknown", 0.0
