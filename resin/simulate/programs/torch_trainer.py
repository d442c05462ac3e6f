"""Healthy: an ordinary training loop. Needs torch."""

import sys
import time

import torch

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
optimizer = torch.optim.Adam(model.parameters())
losses = []
while time.monotonic() < END:
    x, y = torch.randn(64, 256), torch.randint(0, 10, (64,))
    loss = torch.nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    time.sleep(0.04)
