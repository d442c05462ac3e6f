"""Leak: every request adds a handler to the logger."""

import logging
import logging.handlers
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)


def request(number):
    logger = logging.getLogger("service")
    handler = logging.handlers.MemoryHandler(1000)
    handler.scratch = bytearray(40_000)  # culprit
    logger.addHandler(handler)  # culprit
    return number


number = 0
while time.monotonic() < END:
    request(number)
    number += 1
    time.sleep(0.03)
