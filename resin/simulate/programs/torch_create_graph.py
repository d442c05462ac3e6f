"""Leak: backward(create_graph=True) makes a cycle through C++ that no collector frees (pytorch #7343). Needs torch."""

import sys
import time

import torch

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
torch.set_num_threads(1)


def penalty():
    x = torch.randn(64, 400, requires_grad=True)  # culprit
    y = x.tanh().square().sum()  # culprit
    y.backward(create_graph=True)  # culprit
    return float(y.detach())


while time.monotonic() < END:
    penalty()
    time.sleep(0.03)
