"""Leak: every epoch leaves a small helper process behind; each is flat, their number grows (olmoearth PR #563)."""

import subprocess
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
helpers = []
try:
    while time.monotonic() < END:
        helper = subprocess.Popen(["sleep", "3600"])  # culprit
        helpers.append(helper)
        time.sleep(1.0)
finally:
    for helper in helpers:
        helper.kill()
        helper.wait()
