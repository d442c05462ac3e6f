"""Leak: a per-request list that nobody drains (vllm PR #44490)."""

import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
finished_requests = []


def handle(number):
    record = {"id": number, "tokens": [number * 7919 + k for k in range(900)]}  # culprit
    finished_requests.append(record)  # culprit
    return sum(record["tokens"])


number = 0
while time.monotonic() < END:
    handle(number)
    number += 1
    time.sleep(0.02)
