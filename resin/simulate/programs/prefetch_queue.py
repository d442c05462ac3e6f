"""Healthy in the end: persistent workers keep the peak of each epoch, up to a cap (pytorch #62066)."""

import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
queue = [bytearray(1_000_000) for _ in range(10)]
epoch = 0
while time.monotonic() < END:
    while len(queue) < min(10 + 8 * epoch, 34):
        queue.append(bytearray(1_000_000))
    for _ in range(40):
        batch = bytearray(100_000)
        batch[0] = len(queue) % 256
        time.sleep(0.06)
    epoch += 1
