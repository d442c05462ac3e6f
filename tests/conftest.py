"""Kernel caches of this checkout's own, for the tests and the processes that they start.

A kernel in the user's caches may come from another checkout, and then names that one's files in its locations; a
measurement of the machine kept there changes which tiles are chosen. Neither may decide a test.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine draws examples slowly: that is no fault of what is tested.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

_CACHES = Path(__file__).parents[1] / "out" / "test-caches"
os.environ.setdefault("TRITON_CACHE_DIR", str(_CACHES / "triton"))
os.environ.setdefault("TORCHROLLER_CACHE_DIR", str(_CACHES / "torchroller"))
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_CACHES / "inductor"))

# Test processes side by side share the cores: kernels of two threads would wait for each other's scheduler slices.
# What threads do to a launch is what these files test; they keep two.
_THREADED = ("test_calls", "test_driver", "test_fork", "test_launch", "test_plan")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# TORCHROLLER_TEST_DEVICE=cuda runs what is about numbers on a GPU: tensors and modules are made there by default.
if "TORCHROLLER_TEST_DEVICE" in os.environ:
    import torch

    torch.set_default_device(os.environ["TORCHROLLER_TEST_DEVICE"])
    torch.backends.cudnn.allow_tf32 = False  # eager is the yardstick of float32

# TORCHROLLER_TEST_SPEC=H100 gives every kernel the tiles and the text that it has on that device, and runs it here.
if "TORCHROLLER_TEST_SPEC" in os.environ:
    from torchroller import device, pipeline

    pipeline.device_spec = lambda _: device.by_name(os.environ["TORCHROLLER_TEST_SPEC"])


@pytest.fixture(autouse=True, scope="module")
def two_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    torch = sys.modules.get("torch")
    if torch is None or request.path.stem not in _THREADED:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
