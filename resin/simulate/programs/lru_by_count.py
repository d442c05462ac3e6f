"""Healthy: a cache bounded by count holds values of random size (vllm #12973): it fills more and more slowly."""

import collections
import random
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
rng = random.Random(5)
cache = collections.OrderedDict()

while time.monotonic() < END:
    key = min(int(rng.paretovariate(0.6)), 400)  # a few keys are asked again and again, most are rare
    if key not in cache:
        cache[key] = bytearray(rng.randrange(100_000, 700_000))
        if len(cache) > 160:
            cache.popitem(last=False)
    cache.move_to_end(key)
    time.sleep(0.01)
