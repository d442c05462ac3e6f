"""Retention: bursts of requests on threads; malloc keeps what the few long-lived blocks pin (ray #53261)."""

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
SIZES = (1500, 3000, 6000, 12000)


def worker(seed):
    """Each burst is larger than the one before; one block in sixty outlives it."""
    rng = random.Random(seed)
    count = 300
    while time.monotonic() < END:
        blocks = []
        for _ in range(count):
            size = rng.choice(SIZES)
            block = libc.malloc(size)
            ctypes.memset(block, 1, size)
            blocks.append(block)
        for number, block in enumerate(blocks):
            if number % 60:
                libc.free(block)
        count += 60
        time.sleep(0.5)


threads = [threading.Thread(target=worker, args=(k,)) for k in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
