"""Leak: a metric with a label per user (prometheus client_python #937)."""

import sys
import time
import uuid

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
REQUESTS = {}


class Counter:
    def __init__(self, labels):
        self.labels = labels
        self.value = 0
        self.exemplar = "x" * 1500 + labels[0]  # culprit


def count(user):
    if user not in REQUESTS:
        REQUESTS[user] = Counter((user,))  # culprit
    REQUESTS[user].value += 1


while time.monotonic() < END:
    for _ in range(25):
        count(str(uuid.uuid4()))
    time.sleep(0.03)
