"""Healthy: a mapped file is read bit by bit; its pages are the kernel's to take back (pytorch #102334)."""

import mmap
import sys
import tempfile
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
SIZE = 256 << 20
with tempfile.TemporaryFile() as file:
    chunk = bytes(1 << 20)
    for _ in range(SIZE >> 20):
        file.write(chunk)
    file.flush()
    with mmap.mmap(file.fileno(), SIZE, prot=mmap.PROT_READ) as view:
        offset = 0
        while time.monotonic() < END:
            view[offset : offset + 65536]
            offset = (offset + 65536) % SIZE
            time.sleep(0.03)
