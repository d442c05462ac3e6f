"""A trainer that leaks: it keeps a record per step that nobody reads."""

import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 300.0)
weights = [0.0] * 50_000
history = []


def train_step(step):
    gradients = [((step * 31 + k) % 97) / 97.0 for k in range(2_000)]
    for k, gradient in enumerate(gradients):
        weights[k] -= 0.01 * gradient
    history.append({"step": step, "gradients": gradients})  # the leak: should have been a number
    return sum(gradients)


step = 0
while time.monotonic() < END:
    train_step(step)
    step += 1
    time.sleep(0.03)
