"""Runs inside the target: which objects become more, and which lines leave malloc holding more than before.

For memory that tracemalloc does not see. Loaded by resin_inprocess on request.

Standard library only, Python 3.8 or later, CPython with glibc.
"""

import collections
import ctypes
import gc
import sys
import threading
import time


def types(seconds=1.0, most=20):
    """Growth of the number of tracked objects by type over `seconds`. The walks hold the GIL.

    A kind counts that became more in both halves of the time: what was made once is nobody's leak.
    """

    def count():
        # Counted in C: a loop in Python over the objects of a torch program would take ten times as long.
        return collections.Counter(map(type, gc.get_objects()))

    readings = []
    pause = 0.0
    for wait_s in (0.0, 0.5 * seconds, 0.5 * seconds):
        time.sleep(wait_s)
        started = time.perf_counter()
        readings.append(count())
        pause += time.perf_counter() - started
    first, second, third = readings
    grown: dict = {}
    for kind, number in (third - second).items():
        if second[kind] > first[kind]:
            name = f"{kind.__module__}.{kind.__qualname__}"
            grown[name] = grown.get(name, 0) + number + second[kind] - first[kind]
    # The program's own kinds first: each of their objects brings dicts, cells and lists with it.
    ordered = sorted(grown.items(), key=lambda item: (item[0].startswith("builtins."), -item[1], item[0]))[
        :most
    ]
    return {"growth": [{"type": k, "count": n} for k, n in ordered if n > 0], "pause_ms": 1000.0 * pause}


class _Ledger:
    """What malloc holds more after each line of the user's code: a trace function that keeps the books.

    A line is booked with all that it called (`bytes`), and without the lines of user code below it (`own_bytes`).
    What came while the line waited (it used less than a tenth of its time) is another thread's doing and apart.
    """

    def __init__(self, used, is_library, most_events):
        self.used = used
        self.is_library = is_library
        self.left = most_events
        self.stopped = False
        self.lines: dict = {}  # place -> [bytes, own bytes, visits]
        self.waited: dict = {}  # place -> bytes
        self.open: dict = {}  # frame -> [place, used, own, clock, cpu, lines below, bytes of lines below]

    def trace(self, frame, event, arg):
        if self.stopped or self.left <= 0:
            sys.settrace(None)
            return None
        self.left -= 1
        if self.is_library(frame.f_code.co_filename):
            return None
        if event in ("line", "return"):
            self._close(frame)
        if event == "line":
            place = (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
            self.open[frame] = [place, self.used(), time.monotonic(), time.thread_time(), 0, 0]
        return self.trace

    def _close(self, frame):
        begun = self.open.pop(frame, None)
        if begun is None:
            return
        place, before, clock, cpu, below, bytes_below = begun
        grown = self.used() - before
        outer = frame.f_back
        while outer is not None and outer not in self.open:
            outer = outer.f_back
        if outer is not None:
            self.open[outer][4] += 1
            self.open[outer][5] += grown
        took = time.monotonic() - clock
        if not below and took > 0.001 and time.thread_time() - cpu < 0.1 * took:
            self.waited[place] = self.waited.get(place, 0) + grown
            return
        entry = self.lines.setdefault(place, [0, 0, 0])
        entry[0] += grown
        entry[1] += grown - bytes_below
        entry[2] += 1

    def begin(self):
        """Trace the threads that run already: 3.12 and later all, before that the calling one."""
        getattr(threading, "settrace_all_threads", sys.settrace)(self.trace)
        running = sys._current_frames()
        if not hasattr(threading, "settrace_all_threads"):
            running = {0: sys._getframe()}
        for frame in _outwards(running.values()):
            if not self.is_library(frame.f_code.co_filename):
                frame.f_trace = self.trace

    def end(self):
        """Let go of every frame: what a call held must not outlive it through us."""
        self.stopped = True
        for frame in _outwards(sys._current_frames().values()):
            if frame.f_trace == self.trace:
                frame.f_trace = None
        self.open.clear()


def _outwards(frames):
    """These frames and all that called them."""
    for frame in frames:
        while frame is not None:
            yield frame
            frame = frame.f_back


def ledger(used, is_library, seconds=2.0, most=12, most_events=200000):
    """Which lines leave malloc holding more than before, over `seconds` of line tracing: native code's callers.

    Line tracing slows Python code down while it lasts; it ends early after `most_events` lines, or where reading
    malloc's books would take more than a seventh of the time. Before Python 3.12 only the main thread is traced.
    `used()` reads malloc's books, `is_library(filename)` tells what is not the user's code.
    """
    started = time.perf_counter()
    for _ in range(8):
        used()
    cost_s = 2.0 * (time.perf_counter() - started) / 8 + 2e-6
    most_events = min(most_events, int(0.15 * seconds / cost_s))
    book = _Ledger(used, is_library, most_events)
    refused = []
    begun = threading.Event()

    def begin(_):
        if not book.stopped:
            if sys.gettrace() is None:
                book.begin()
            else:
                refused.append("the target traces its own lines already")
            begun.set()
        return 0

    call = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(begin)
    # The interpreter may call it after we are gone, and returns through it: the last few stay for good.
    sys.__dict__["_resin_calls"] = [*getattr(sys, "_resin_calls", ())[-7:], call]
    first, clock = used(), time.monotonic()
    if ctypes.pythonapi.Py_AddPendingCall(call, None):
        return {"error": "the interpreter takes no more pending calls"}
    while time.monotonic() - clock < seconds and book.left > 0 and not refused:
        time.sleep(0.01)
    book.end()
    if begun.is_set() and not refused and hasattr(threading, "settrace_all_threads"):
        threading.settrace_all_threads(None)
    last, took = used(), time.monotonic() - clock
    if refused:
        return {"error": refused[0]}
    if not begun.is_set():
        return {"error": "the main thread ran no Python in that time"}
    rows = sorted(dict(book.lines).items(), key=lambda item: -item[1][1])
    waits = sorted(dict(book.waited).items(), key=lambda item: -item[1])
    return {
        "lines": [
            {"file": p[0], "line": p[1], "function": p[2], "bytes": e[0], "own_bytes": e[1], "visits": e[2]}
            for p, e in rows[:most]
            if e[1] > 0
        ],
        "waited": [
            {"file": p[0], "line": p[1], "function": p[2], "bytes": n} for p, n in waits[:most] if n > 0
        ],
        "growth_bytes": last - first,
        "seconds": took,
        "events": most_events - book.left,
        "pause_ms": 1000.0 * (most_events - book.left) * cost_s,
    }
