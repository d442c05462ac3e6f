"""Leak: a server reads all logs again and again and keeps every reading (tensorboard #766)."""

import pathlib
import sys
import tempfile
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
events = {}


def reload(directory, reading):
    for path in sorted(directory.glob("*.log")):
        text = path.read_text()
        events[path.name, reading] = [line.split() for line in text.splitlines()]  # culprit


with tempfile.TemporaryDirectory() as name:
    logs = pathlib.Path(name)
    for run in range(4):
        (logs / f"run{run}.log").write_text("".join(f"{run} loss {k / 7} step {k}\n" for k in range(120)))
    reading = 0
    while time.monotonic() < END:
        reload(logs, reading)
        reading += 1
        time.sleep(0.1)
