"""Leak: a C library allocates per call and never frees."""

import ctypes
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]


def transform(size):
    block = libc.malloc(size)  # culprit
    ctypes.memset(block, 1, size)  # culprit
    return size


while time.monotonic() < END:
    for _ in range(20):
        transform(3000)
    time.sleep(0.03)
