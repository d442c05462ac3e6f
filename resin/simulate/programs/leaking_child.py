"""Leak in a child: the parent stays flat while the helper process grows (wandb #12910)."""

import subprocess
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)

if len(sys.argv) > 2 and sys.argv[2] == "child":
    kept = []
    for line in sys.stdin:
        block = bytearray(int(line))  # culprit
        kept.append(block)  # culprit
else:
    child = subprocess.Popen([sys.executable, __file__, "0", "child"], stdin=subprocess.PIPE, text=True)
    while time.monotonic() < END:
        child.stdin.write("70000\n")
        child.stdin.flush()
        time.sleep(0.03)
    child.stdin.close()
    child.wait()
