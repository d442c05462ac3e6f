"""Leak under a saw: a batch grows and is written out again and again; what counts the batches is never given back."""

import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
batch = []
written = []

step = 0
while time.monotonic() < END:
    batch.append(bytearray(400_000))
    written.append(bytearray(20_000))  # culprit
    step += 1
    if step % 200 == 0:
        batch.clear()
    time.sleep(0.03)
