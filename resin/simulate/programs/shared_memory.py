"""Leak of shared memory: a segment per epoch, unlink forgotten (pytorch #17499). Cleans up at its end."""

import signal
import sys
import time
from multiprocessing import shared_memory

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
segments = []
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def epoch(number):
    segment = shared_memory.SharedMemory(create=True, size=1 << 20)  # culprit
    segment.buf[:] = bytes([number % 256]) * (1 << 20)
    segments.append(segment)  # culprit


try:
    number = 0
    while time.monotonic() < END:
        epoch(number)
        number += 1
        time.sleep(0.5)
finally:
    for segment in segments:  # a simulation must not fill the machine's /dev/shm for good
        segment.close()
        segment.unlink()
