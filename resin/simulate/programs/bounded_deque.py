"""Healthy: the last records of a stream in a deque with a maximal length, of sizes that vary."""

import collections
import random
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
rng = random.Random(11)
recent = collections.deque(maxlen=400)

while time.monotonic() < END:
    recent.append(bytearray(rng.randrange(20_000, 200_000)))
    time.sleep(0.02)
