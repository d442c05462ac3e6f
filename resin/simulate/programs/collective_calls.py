"""Leak: every collective call leaves its arguments on the host (nccl #1534)."""

import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)


class Communicator:
    def __init__(self):
        self.plans = []

    def all_reduce(self, number):
        plan = {"call": number, "ranks": list(range(64)), "buffer": bytearray(20_000)}  # culprit
        self.plans.append(plan)  # culprit
        return len(plan["ranks"])


communicator = Communicator()
step = 0
while time.monotonic() < END:
    communicator.all_reduce(step)
    step += 1
    time.sleep(0.01)
