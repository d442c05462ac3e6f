"""Healthy: allocates and frees every step."""

import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
weights = bytearray(20_000_000)
step = 0
while time.monotonic() < END:
    activations = [bytearray(300_000 + 1000 * (step * 37 % 50)) for _ in range(10)]
    weights[step % len(weights)] = len(activations)
    del activations
    step += 1
    time.sleep(0.03)
