"""Leak: a graph is captured for every new length and kept (pytorch #112090). Needs torch."""

import sys
import time

import torch

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
graphs = {}


def run(length):
    if length not in graphs:
        x = torch.randn(length, 64)
        graphs[length] = torch.jit.trace(model, x, check_trace=False), x  # culprit
    return graphs[length][0](torch.ones(length, 64))


length = 1
while time.monotonic() < END:
    run(length)
    length += 1
    time.sleep(0.05)
