"""Bounded: a forked data-loader worker dirties the parent's pages by reading (pytorch #13246)."""

import os
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
dataset = [f"sample number {k}" for k in range(400_000)]
pid = os.fork()
if pid == 0:
    total = position = 0
    started = time.monotonic()
    while time.monotonic() < END:
        for item in dataset[position : position + 4000]:
            total += len(item)
        position = (position + 4000) % len(dataset)
        time.sleep(0.1)
    os._exit(0)
os.waitpid(pid, 0)
