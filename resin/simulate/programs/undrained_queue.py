"""Leak: results go into a multiprocessing queue whose reader has ended: they pile up before the full pipe."""

import multiprocessing
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)


def read_ten(queue):
    for _ in range(10):
        queue.get()


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    reader = context.Process(target=read_ten, args=(results,), daemon=True)
    reader.start()
    step = 0
    while time.monotonic() < END:
        metrics = [float(step + k) for k in range(2_000)]  # culprit
        results.put(metrics)  # culprit
        step += 1
        time.sleep(0.03)
    results.cancel_join_thread()
