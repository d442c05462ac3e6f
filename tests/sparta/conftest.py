"""Kernels run natively where a Triton backend for this machine is installed, else in Triton's interpreter."""

import os

import pytest


def _backend_for_cpu() -> bool:
    from importlib.metadata import entry_points

    return any(e.name == "cpu" for e in entry_points(group="triton.backends"))


if not _backend_for_cpu():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _one_thread():
    import torch

    torch.manual_seed(0)
