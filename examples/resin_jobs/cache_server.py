"""A server whose cache fills up and then stays: growth that is no leak."""

import functools
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 300.0)


@functools.lru_cache(maxsize=400)
def render(page):
    return bytearray(150_000 + page % 5)


request = 0
while time.monotonic() < END:
    render(request)
    request += 1
    time.sleep(0.05)
