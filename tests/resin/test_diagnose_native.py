"""Leaks in native code: told from Python's own, with the line that calls it or an honest word that none is known."""

from __future__ import annotations

import ctypes
import sys
import textwrap
from collections import Counter

import pytest

from resin.diagnose import diagnose, preload, stacks
from resin.diagnose.conclusion import Notebook, conclude
from resin.diagnose.heapwalk import HeapUse, grown_sizes
from resin.diagnose.ladder import _ledger
from resin.diagnose.mappings import Growth
from resin.diagnose.target import Target
from resin.model import Suspect

MIB = 1 << 20
glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the ledger reads glibc's malloc (2.33 or later)"
)

NATIVE = textwrap.dedent(
    """\
    import ctypes, time
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]

    def transform(size):
        block = libc.malloc(size)
        ctypes.memset(block, 1, size)

    def load():
        return bytearray(400_000), [bytearray(9000) for _ in range(20)]

    def step():
        batch = load()
        transform(20_000)
        return len(batch)

    while True:
        step()
        time.sleep(0.004)
    """
)


@glibc
def test_the_line_that_calls_native_code_is_first(start):
    """Beside lines that allocate far more and give it back."""
    process, path, _ = start(NATIVE, helper=True)
    found = diagnose(process.pid, seconds=1.5)
    assert found.kind == "native-heap"
    assert found.confidence > 0.7
    first = found.suspects[0]
    assert (first.file, first.line, first.function, first.source) == (str(path), 7, "transform", "allocator")
    assert not {11, 14} & {s.line for s in found.suspects if s.source == "allocator"}
    assert any("tracemalloc saw" in note and "native code" in note for note in found.notes)
    assert any("of 20,0" in note and "malloc gave out" in note for note in found.notes)
    assert process.poll() is None


@glibc
def test_python_objects_that_hold_native_memory_are_named(start):
    """A database in memory: SQLite allocates, a list of connections holds on to it."""
    text = (
        "import sqlite3, time\nkept = []\n\ndef request():\n    base = sqlite3.connect(':memory:')\n"
        "    base.execute('create table t (x)')\n    kept.append(base)\n\n"
        "while True:\n    request()\n    time.sleep(0.02)\n"
    )
    process, path, _ = start(text, helper=True)
    found = diagnose(process.pid, seconds=2.0)
    assert found.kind == "native-heap"
    assert any("Python objects hold on to it: " in n and "sqlite3.Connection +" in n for n in found.notes)
    first = found.suspects[0]
    assert (first.file, first.function) == (str(path), "request")
    assert {5, 6} & {s.line for s in found.suspects[:3]}  # where it is allocated; line 7 holds on to it


@glibc
def test_a_target_that_traces_its_lines_is_left_alone(start):
    process, _, control = start("import sys\nsys.settrace(lambda *_: None)\n" + NATIVE, helper=True)
    answer = preload.ask(control, process.pid, {"op": "ledger", "seconds": 0.5}, timeout_s=10)
    assert answer == {"error": "the target traces its own lines already", "pid": process.pid}


@glibc
def test_nothing_is_traced_afterwards(start):
    text = NATIVE.replace(
        "while True:\n",
        "import os, sys\nwhile True:\n    if os.path.exists(sys.argv[0] + '.look'):\n"
        "        print(sys.gettrace(), sys._getframe().f_trace, flush=True)\n        break\n",
    )
    process, path, control = start(text, helper=True)
    answer = preload.ask(control, process.pid, {"op": "ledger", "seconds": 0.5}, timeout_s=10)
    assert answer["events"] > 0
    path.with_name(path.name + ".look").touch()
    out, err = process.communicate(timeout=20)
    assert out.split() == ["None", "None"]
    assert err == ""


@glibc
def test_a_main_thread_that_only_waits(start):
    """Before Python 3.12 other threads cannot be traced: it is said that one of them allocates."""
    text = NATIVE.replace(
        "while True:\n    step()\n    time.sleep(0.004)\n",
        "import threading\n\ndef work():\n    while True:\n        step()\n        time.sleep(0.004)\n\n"
        "threading.Thread(target=work, daemon=True).start()\nwhile True:\n    time.sleep(0.2)\n",
    )
    process, path, _ = start(text, helper=True)
    found = diagnose(process.pid, seconds=1.5)
    assert found.kind == "native-heap"
    waits = text.splitlines().index("    time.sleep(0.2)") + 1
    assert waits not in {s.line for s in found.suspects}
    if sys.version_info < (3, 12):
        assert any(f"{path}:{waits} waited: another thread allocates" in note for note in found.notes)
        assert found.confidence < 0.7
    else:
        assert found.suspects[0].line == 7


def test_from_outside_it_is_a_guess_and_says_so(start):
    if stacks.py_spy() is None:
        pytest.skip("py-spy is not installed")
    process, _, _ = start(NATIVE)
    found = diagnose(process.pid, seconds=1.5)
    assert (found.kind, found.confidence) == ("native-heap", 0.4)
    assert any("no container in the source does" in note for note in found.notes)


HEAP = HeapUse(50 * MIB, 0, 1000, 1, 50 * MIB, True, Counter({32: 100, 5008: 300}))
LATER = HeapUse(60 * MIB, 0, 3000, 1, 60 * MIB, True, Counter({32: 90, 5008: 2300, 64: 10}))
C_PROGRAM = Target(7, "/bin/server", ("server",), None, True)
PYTHON = Target(7, "/usr/bin/python3.11", ("python3", "a.py"), (3, 11), True)


def test_sizes_that_became_more():
    assert grown_sizes(HEAP, LATER) == [(5008, 2000), (64, 10)]
    assert grown_sizes(LATER, HEAP) == [(32, 10)]


def test_a_program_that_is_not_python():
    book = Notebook(heap_before=HEAP, heap=LATER, growth=Growth((), {"heap": 10 * MIB}, 10 * MIB))
    found = conclude(C_PROGRAM, None, book)
    assert (found.kind, found.confidence) == ("native-heap", 0.5)
    assert found.notes[0] == "blocks that malloc gave out and did not get back: 2,000 of 5,008 bytes"
    assert "no line is known: a heap profiler at the next start" in found.notes[1]


def test_too_little_growth_to_compare_keeps_pythons_lines():
    suspect = Suspect("a.py", 3, "f", 900.0, 1.0, "tracemalloc")
    found = conclude(
        PYTHON, None, Notebook([suspect], python_bytes=900.0, resident_bytes=4096.0, window_s=3.0)
    )
    assert (found.kind, found.confidence) == ("python-heap", 0.5)


def test_no_line_in_a_python_program():
    book = Notebook(
        python_share=0.01, resident_bytes=5.0 * MIB, growth=Growth((), {"heap": 5 * MIB}, 5 * MIB)
    )
    found = conclude(PYTHON, None, book)
    assert found.kind == "native-heap"
    assert 0.5 < found.confidence < 0.7
    assert any("no line is known: start the program under `resin watch`" in note for note in found.notes)


def ledger_answer(*lines, growth=4 * MIB, waited=()):
    rows = [
        {"file": "a.py", "line": n, "function": "f", "bytes": own, "own_bytes": own, "visits": 1}
        for n, own in lines
    ]
    waits = [{"file": "a.py", "line": n, "function": "f", "bytes": size} for n, size in waited]
    return {
        "lines": rows, "waited": waits, "growth_bytes": growth, "seconds": 2.0, "events": 10, "pause_ms": 1.0,
    }  # fmt: skip


def test_the_ledger_leaves_out_what_is_given_back_elsewhere():
    book = Notebook([Suspect("a.py", 9, "f", 100.0, 1.0, "tracemalloc")])
    assert _ledger(book, ledger_answer((1, 40 * MIB), (2, 3 * MIB), (3, MIB // 8)), "ledger")
    assert [(s.line, s.source) for s in book.suspects] == [(2, "allocator"), (9, "tracemalloc")]
    assert book.suspects[0].share == 0.75
    assert "lines that left it with more: 1, others gave it back elsewhere" in book.probes[0]


def test_objects_that_hold_memory_take_turns_with_what_allocated_it():
    made = [Suspect("a.py", n, "f", 100.0, 0.5, "tracemalloc") for n in (7, 8)]
    ran = Suspect("a.py", 6, "f", 100.0, 0.5, "running")
    book = Notebook([*made, ran], held=("torch.Tensor +8",))
    _ledger(book, ledger_answer((2, 3 * MIB)), "ledger")
    assert [s.line for s in book.suspects] == [7, 2, 8, 6]


def test_the_ledger_with_too_little_growth_names_nobody():
    book = Notebook()
    _ledger(book, ledger_answer((2, 1000), growth=1000), "ledger")
    assert book.suspects == []
    assert _ledger(book, None, "ledger") is False
    assert _ledger(book, {"error": "it is busy"}, "ledger") is False
    assert book.probes[1:] == ["ledger: no answer in time", "ledger: it is busy"]
