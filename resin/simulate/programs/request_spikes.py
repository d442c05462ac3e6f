"""Healthy: now and then a large request."""

import random
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
rng = random.Random(5)
base = bytearray(15_000_000)
while time.monotonic() < END:
    size = 60_000_000 if rng.random() < 0.02 else 500_000
    body = bytearray(size)
    body[-1] = base[0]
    time.sleep(0.7 if size > 1_000_000 else 0.05)
    del body
