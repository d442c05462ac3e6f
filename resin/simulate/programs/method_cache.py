"""Leak: an unbounded cache on a method keeps every instance (transformers #45412)."""

import functools
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)


class Model:
    def __init__(self, number):
        self.weights = bytearray(4_000_000)  # culprit
        self.number = number

    @functools.cache  # noqa: B019  (the mistake that this program is about)
    def encode(self, text):
        return hash((self.number, text))


number = 0
while time.monotonic() < END:
    model = Model(number)
    model.encode("a")  # culprit
    number += 1
    time.sleep(1.5)
