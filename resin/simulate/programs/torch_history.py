"""Leak: the logger keeps losses with their graphs (wandb #354). Needs torch."""

import sys
import time

import torch

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
history = []


def step():
    x = torch.randn(64, 256)
    loss = model(x).square().mean()  # culprit
    optimizer.zero_grad()
    loss.backward(retain_graph=True)
    optimizer.step()
    history.append(loss)  # culprit


while time.monotonic() < END:
    step()
    time.sleep(0.05)
