"""A server whose threads free nearly all they take, yet malloc cannot give it back: retention."""

import ctypes
import random
import sys
import threading
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 300.0)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]


def serve(seed):
    """Each burst of requests is larger than the last; one small session block in sixty outlives it."""
    rng = random.Random(seed)
    requests = 300
    while time.monotonic() < END:
        blocks = []
        for _ in range(requests):
            size = rng.choice((1500, 3000, 6000, 12000))
            block = libc.malloc(size)
            ctypes.memset(block, 1, size)
            blocks.append(block)
        for number, block in enumerate(blocks):
            if number % 60:
                libc.free(block)
        requests += 50
        time.sleep(0.6)


threads = [threading.Thread(target=serve, args=(seed,)) for seed in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
