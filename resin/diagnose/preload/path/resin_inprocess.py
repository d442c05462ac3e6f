"""Runs inside the target: answers requests for an allocation window, allocator figures, a trim or type counts.

Standard library only, Python 3.8 or later. Loaded by the sitecustomize beside it at start, or sent with
sys.remote_exec to a running Python 3.14. Nothing is traced until a request comes, and tracing ends with it.
"""

import contextlib
import ctypes
import json
import os
import sys
import threading
import time

POLL_S = 0.25
_SELF = globals().get("__file__", "<resin>")
MOST_TRACED_BYTES = 3 * 524288  # some 25,000 allocations that stayed: enough to rank lines, little to carry


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def _libc():
    return ctypes.CDLL(None, use_errno=True)


def _malloc_used():
    """A function that tells the bytes malloc has handed out and not got back; None where glibc has no mallinfo2.

    It keeps the GIL, so that no other Python thread runs between the reading and what follows it.
    """
    try:
        function = ctypes.PyDLL(None).mallinfo2
    except (AttributeError, OSError):
        return None
    function.restype = _Mallinfo2

    def used():
        info = function()
        return info.uordblks + info.hblkhd

    return used


def resident_bytes():
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def allocator():
    """What glibc's malloc holds: in use, free but kept, mapped. None without mallinfo2 (glibc < 2.33, musl)."""
    libc = _libc()
    try:
        function = libc.mallinfo2
    except AttributeError:
        return None
    function.restype = _Mallinfo2
    info = function()
    return {
        "used_bytes": info.uordblks + info.hblkhd,
        "free_bytes": info.fordblks,
        "arena_bytes": info.arena,
        "mapped_bytes": info.hblkhd,
        "resident_bytes": resident_bytes(),
    }


def trim():
    """Ask malloc for its free pages back; says how much resident memory that freed and how long it took."""
    libc = _libc()
    before = resident_bytes()
    started = time.perf_counter()
    libc.malloc_trim(0)  # a ctypes call releases the GIL: other threads go on unless they allocate
    return {
        "freed_bytes": before - resident_bytes(),
        "resident_bytes": before,
        "pause_ms": 1000.0 * (time.perf_counter() - started),
    }


def _by_place(snapshot):
    """Size and count by stack, outermost frame first, without our own."""
    # Tuples; the public view builds and sorts an object per trace. Equal stacks are mostly one object, and its
    # address is hashed faster than its frames.
    by_address: dict = {}
    for trace in snapshot.traces._traces:
        entry = by_address.get(id(trace[2]))
        if entry is None:
            entry = by_address[id(trace[2])] = [trace[2], 0, 0]
        entry[1] += trace[1]
        entry[2] += 1
    found: dict = {}
    for frames, size, count in by_address.values():
        if not any(filename == _SELF for filename, _ in frames):
            stack = tuple(reversed(frames))
            before = found.get(stack, (0, 0))
            found[stack] = (before[0] + size, before[1] + count)
    return found


class _Running:
    """Growth by the line that ran: shared out by the CPU time that each thread used since the last look."""

    def __init__(self):
        self.total = 0
        self.bytes: dict = {}
        self.busy: dict = {}  # place -> looks that found a thread still there, +1 if it worked, -1 if it waited
        self._last: dict = {}  # ident -> (place, CPU time)
        self._clock = time.monotonic()

    def seen(self, grown):
        me = threading.get_ident()
        threads = {t.ident: t.native_id for t in threading.enumerate()}
        now = time.monotonic()
        used = {}
        for ident, frame in sys._current_frames().items():
            if ident == me:
                continue
            place, cpu = _innermost(frame), _thread_cpu_s(threads.get(ident))
            before = self._last.get(ident)
            if before is not None:
                used[ident] = max(0.0, cpu - before[1])
                if before[0] == place:
                    worked = used[ident] > 0.1 * (now - self._clock)
                    self.busy[place] = self.busy.get(place, 0) + (1 if worked else -1)
            self._last[ident] = (place, cpu)
        self._clock = now
        self.total += grown
        total = sum(used.values())
        for ident, share in used.items():
            if grown and total:
                place = self._last[ident][0]
                self.bytes[place] = self.bytes.get(place, 0) + grown * share / total

    def busiest(self):
        """Places by growth, without those at which threads mostly wait: it came before they got there."""
        told = [item for item in self.bytes.items() if self.busy.get(item[0], 0) >= 0 and item[1] > 0]
        return sorted(told, key=lambda item: -item[1])


def _thread_cpu_s(native_id):
    """CPU time of one of our threads; 0 where it cannot be told."""
    try:
        with open(f"/proc/self/task/{native_id}/schedstat", "rb") as file:
            return int(file.read().split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def window(seconds=3.0, frames=8, most=12):
    """Allocations made and kept during a window, by stack, innermost frame last.

    Three snapshots at one, two and three thirds of the window, or of the memory that tracing may take: a place
    counts with the smaller of its two growths, so that what only lives for the step at hand does not. Figures are
    from the first to the third. Beside it the growth of resident memory over the window and
    the lines that ran while it grew, for memory that Python's allocators do not see (tensors, C libraries).
    """
    import tracemalloc

    if tracemalloc.is_tracing():
        return {"error": "the target traces its own allocations already"}
    pause = 0.0
    snapshots = []
    running = _Running()
    last = resident_bytes()
    started = time.monotonic()
    tracemalloc.start(frames)
    try:
        for third in (1, 2, 3):
            while True:
                left = started + seconds * third / 3.0 - time.monotonic()
                if left <= 0 or tracemalloc.get_tracemalloc_memory() > MOST_TRACED_BYTES * third / 3.0:
                    break
                time.sleep(min(0.01, left))
                now = resident_bytes()
                running.seen(max(0, now - last))
                last = now
            before = time.thread_time()  # our CPU time bounds how long we held the GIL
            own = resident_bytes() - tracemalloc.get_tracemalloc_memory()
            snapshots.append((time.monotonic(), own, tracemalloc.take_snapshot()))
            pause += time.thread_time() - before
    finally:
        tracemalloc.stop()
    # Only now: what is allocated while tracing is on is traced itself, which costs ten times the work.
    before = time.thread_time()
    t1, resident1 = snapshots[0][:2]
    t3, resident3 = snapshots[2][:2]
    one, two, three = [_by_place(snapshot) for _, _, snapshot in snapshots]
    del snapshots
    pause += time.thread_time() - before
    places = []
    for frames_, (size, count) in three.items():
        middle, _ = two.get(frames_, (0, 0))
        low, low_count = one.get(frames_, (0, 0))
        growth = min(size - middle, middle - low)
        if growth > 0:
            places.append(
                {
                    "stack": [list(f) for f in frames_],
                    "bytes": size - low,
                    "count": count - low_count,
                    "steady_bytes": 2 * growth,
                }
            )
    places.sort(key=lambda p: -p["steady_bytes"])
    busiest = running.busiest()[:most]
    return {
        "places": places[:most],
        "elided": max(0, len(places) - most),
        "python_growth_bytes": sum(p["steady_bytes"] for p in places),
        "resident_growth_bytes": resident3 - resident1,
        "running": [{"file": k[0], "line": k[1], "function": k[2], "bytes": n} for k, n in busiest],
        "running_total_bytes": running.total,
        "seconds": t3 - t1,
        "pause_ms": 1000.0 * pause,
    }


_PREFIXES = tuple({os.path.normpath(p) + os.sep for p in (sys.prefix, sys.base_prefix, sys.exec_prefix) if p})


def _is_library(filename):
    return filename.startswith("<") or "site-packages" in filename or filename.startswith(_PREFIXES)


def _innermost(frame):
    """The innermost frame outside the standard library and installed packages, else the innermost."""
    best = frame
    while frame is not None:
        if not _is_library(frame.f_code.co_filename):
            best = frame
            break
        frame = frame.f_back
    return (best.f_code.co_filename, best.f_lineno, best.f_code.co_name)


def _native():
    """What resin_ledger.py defines: it lies beside this file or was sent along with it."""
    path = os.path.join(os.path.dirname(_SELF), "resin_ledger.py")
    source = globals().get("LEDGER_SOURCE")
    if source is None:
        with open(path, encoding="utf-8") as file:
            source = file.read()
    names: dict = {"__name__": "resin_ledger", "__file__": path}
    exec(compile(source, path, "exec"), names)
    return names


def _ledger(seconds):
    """Run the ledger over the lines of the user's code."""
    used = _malloc_used()
    if used is None or sys.implementation.name != "cpython":
        return {"error": "needs CPython with glibc 2.33 or later"}
    names = _native()
    path = names["__file__"]
    return names["ledger"](used, lambda name: name in (_SELF, path) or _is_library(name), seconds)


def answer(request):
    op = request.get("op")
    if op == "window":
        return window(float(request.get("seconds", 3.0)), int(request.get("frames", 8)))
    if op == "allocator":
        return {"allocator": allocator()}
    if op == "trim":
        return trim()
    if op == "types":
        return _native()["types"](float(request.get("seconds", 1.0)))
    if op == "ledger":
        return _ledger(float(request.get("seconds", 2.0)))
    return {"error": f"unknown op {op!r}; known: window, allocator, trim, types, ledger"}


def _write(path, found):
    draft = path + ".part"
    with open(draft, "w", encoding="utf-8") as file:
        json.dump(found, file)
    os.rename(draft, path)


def handle(request, path):
    """Answer one request into a file; whatever goes wrong is an answer too."""
    try:
        found = answer(request)
    except Exception as error:
        found = {"error": repr(error)}
    found["pid"] = os.getpid()
    _write(path, found)


def _loop(directory):
    pid = os.getpid()
    base = os.path.join(directory, str(pid))
    _write(base + ".ready", {"pid": pid, "python": list(sys.version_info[:3])})
    while True:
        time.sleep(POLL_S)
        try:
            with open(base + ".request", encoding="utf-8") as file:
                request = json.load(file)
        except FileNotFoundError:
            continue
        except ValueError as error:
            request = {"op": f"unreadable request: {error}"}
        os.unlink(base + ".request")
        handle(request, base + ".answer")


def _quiet_loop(directory):
    with contextlib.suppress(OSError):  # the watcher is gone, and its directory with it
        _loop(directory)


def serve(directory):
    """Wait for requests in a daemon thread, in forked children as well."""

    def start():
        threading.Thread(target=_quiet_loop, args=(directory,), name="resin", daemon=True).start()

    start()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=start)
