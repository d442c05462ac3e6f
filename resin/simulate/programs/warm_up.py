"""Healthy: loads its data during the first seconds, then serves."""

import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
tables = [bytearray(3_000_000) for _ in range(5)]
for _ in range(20):
    tables.append(bytearray(2_000_000))
    time.sleep(0.2)
step = 0
while time.monotonic() < END:
    reply = bytearray(200_000)
    reply[0] = len(tables) + step % 2
    step += 1
    time.sleep(0.03)
