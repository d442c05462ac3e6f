"""Healthy in the end: frames of 6 MB and small blocks alternate in threads (xiaomi-miloco PR #459)."""

import ctypes
import random
import sys
import threading
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.mallopt(-3, 1 << 24)  # M_MMAP_THRESHOLD, where it would come to by itself after large frames were freed


def camera(seed):
    """More and more frames are in flight; one small block of each outlives it for a while."""
    rng = random.Random(seed)
    small = []
    in_flight = 1.0
    while time.monotonic() < END:
        frames = []
        for _ in range(int(in_flight)):
            frame = libc.malloc(6_000_000)
            ctypes.memset(frame, 1, 6_000_000)
            frames.append(frame)
            small.append(libc.malloc(rng.randrange(200, 900)))
        for frame in frames:
            libc.free(frame)
        while len(small) > 400:
            libc.free(small.pop(0))
        in_flight = min(in_flight + 0.2, 6.0)
        time.sleep(0.3)


threads = [threading.Thread(target=camera, args=(k,)) for k in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
