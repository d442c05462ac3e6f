"""Healthy in the end: a pool of locked buffers grows with prefetch x workers, then it is full (pytorch #97432)."""

import ctypes
import mmap
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
SIZE = 4 << 20
libc = ctypes.CDLL(None, use_errno=True)
pool = []
started = time.monotonic()
while time.monotonic() < END:
    wanted = min(2 + int((time.monotonic() - started) / 1.5), 10)
    while len(pool) < wanted:
        buffer = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        buffer[:] = bytes(SIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        libc.mlock(
            ctypes.c_void_p(address), ctypes.c_size_t(SIZE)
        )  # without the right to lock it stays plain
        pool.append(buffer)
    time.sleep(0.05)
