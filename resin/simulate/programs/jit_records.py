"""Leak: a profiling executor records the types of every run and stores them in blocks (pytorch #46380)."""

import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
BLOCK = 4 << 20
blocks = []
used = 0


def record(size):
    """Records are small; memory grows by a block at a time."""
    global used
    if not blocks or used + size > BLOCK:
        blocks.append(bytearray(BLOCK))  # culprit
        used = 0
    blocks[-1][used : used + size] = b"t" * size
    used += size


call = 0
while time.monotonic() < END:
    for _ in range(40):
        record(1200 + call % 64)
        call += 1
    time.sleep(0.02)
