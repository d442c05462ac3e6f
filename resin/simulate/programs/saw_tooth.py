"""Healthy: garbage in cycles piles up until the collector runs."""

import gc
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
gc.disable()


class Node:
    def __init__(self):
        self.me = self
        self.payload = bytearray(150_000)


step = 0
while time.monotonic() < END:
    Node()
    step += 1
    if step % 150 == 0:
        gc.collect()
    time.sleep(0.025)
