"""Leak of threads: each request starts one that never ends."""

import sys
import threading
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
stop = threading.Event()


def watch_request():
    stop.wait()


def request():
    threading.Thread(target=watch_request, daemon=True).start()  # culprit


while time.monotonic() < END:
    request()
    time.sleep(0.25)
