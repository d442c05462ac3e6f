"""Leak: a forward hook keeps the activations (pytorch #46386). Needs torch."""

import sys
import time

import torch

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 10))
activations = []


def keep(module, inputs, output):
    activations.append(output.detach())  # culprit


model[0].register_forward_hook(keep)
while time.monotonic() < END:
    with torch.no_grad():
        model(torch.randn(16, 256))
    time.sleep(0.04)
