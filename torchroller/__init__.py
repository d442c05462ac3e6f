"""torchroller: `torch.compile(model, backend="roller")`.

This module is lazy (PEP 562) and imports neither torch nor triton. Triton imports
`torchroller.triton_cpu` during `import triton`, in every program on the machine, so whatever is
paid here is paid by everybody.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "explain": "torchroller.explaining",
    "last_report": "torchroller.explaining",
    "reproducer": "torchroller.reproduce",
    "DeviceSpec": "torchroller.device",
    "construct": "torchroller.search",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'torchroller' has no attribute {name!r}; it has {sorted(_EXPORTS)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
