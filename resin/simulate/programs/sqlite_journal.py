"""Leak: a journal in an in-memory database gets rows and never loses any. The memory is sqlite's, not Python's."""

import sqlite3
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
journal = sqlite3.connect(":memory:")
journal.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, at REAL, body BLOB)")


def record(body):
    with journal:
        journal.execute("INSERT INTO events (at, body) VALUES (?, ?)", (time.time(), body))  # culprit


while time.monotonic() < END:
    for _ in range(10):
        record(bytes(4_000))
    time.sleep(0.03)
