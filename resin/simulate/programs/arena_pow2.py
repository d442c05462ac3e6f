"""Healthy in the end: an arena doubles for larger shapes and never shrinks (onnxruntime #11118)."""

import random
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
rng = random.Random(3)
arena = bytearray(1 << 20)
while time.monotonic() < END:
    need = int(min(2.0 ** rng.gauss(21.0, 1.2), 40e6))
    while len(arena) < need:
        arena = bytearray(2 * len(arena))
    arena[need - 1] = 1
    time.sleep(0.05)
