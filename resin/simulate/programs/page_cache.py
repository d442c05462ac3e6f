"""Healthy: big files are read; the kernel keeps their pages, the process keeps nothing (kubernetes #43916)."""

import os
import sys
import tempfile
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
with tempfile.TemporaryDirectory() as name:
    path = os.path.join(name, "data")
    with open(path, "wb") as file:
        for _ in range(128):
            file.write(os.urandom(1 << 16) * 16)
    while time.monotonic() < END:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 20) and time.monotonic() < END:
                time.sleep(0.01)
