"""Leak: functions are generated per shape and kept (torch.compile recompilations, pytorch #188127)."""

import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
compiled = {}


def specialise(length):
    body = "\n".join(f"    x = x * {k} + {length}" for k in range(300))
    names = {}
    exec(f"def kernel(x):\n{body}\n    return x", names)  # culprit
    compiled[length] = names["kernel"]  # culprit
    return names["kernel"]


length = 1
while time.monotonic() < END:
    specialise(length)(1)
    length += 1
    time.sleep(0.03)
