"""Healthy: a bounded cache fills up and stays (a cache server after its warm-up)."""

import functools
import random
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
rng = random.Random(1)


@functools.lru_cache(maxsize=300)
def render(key):
    return bytearray(150_000 + key % 7)


key = 0
while time.monotonic() < END:
    render(key)
    if rng.random() < 0.3:
        render(max(0, key - rng.randrange(250)))
    key += 1
    time.sleep(0.02)
