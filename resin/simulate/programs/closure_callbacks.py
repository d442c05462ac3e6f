"""Leak: callbacks that close over a buffer stay registered (hooks that hold self: pytorch #46386)."""

import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)


class Bus:
    def __init__(self):
        self.listeners = []

    def subscribe(self, callback):
        self.listeners.append(callback)  # culprit


def session(bus, number):
    frame = bytearray(60_000)  # culprit

    def on_event():
        return len(frame) + number

    bus.subscribe(on_event)


bus = Bus()
number = 0
while time.monotonic() < END:
    session(bus, number)
    number += 1
    time.sleep(0.03)
