"""torchsparta: pruned and quantized models become fast, with the same numbers out.

    tesa = torchsparta.from_nni(masks)
    print(torchsparta.propagate(model, tesa, example_inputs))
    fast = torchsparta.sparsify(model, tesa, example_inputs)
    print(torchsparta.report(fast))

Importing the package imports nothing but itself; each name loads its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "TeSA": "torchsparta.tesa",
    "Quant": "torchsparta.tesa",
    "ModelTeSA": "torchsparta.masked",
    "masked_model": "torchsparta.masked",
    "from_nni": "torchsparta.masks",
    "from_torch_prune": "torchsparta.masks",
    "from_torch_ao": "torchsparta.masks",
    "from_zeros": "torchsparta.masks",
    "prune_free": "torchsparta.masks",
    "load_masks": "torchsparta.masks",
    "propagate": "torchsparta.propagation.analysis",
    "Propagation": "torchsparta.propagation.analysis",
    "sparsify": "torchsparta.api",
    "sparsify_": "torchsparta.api",
    "attach": "torchsparta.api",
    "report": "torchsparta.reporting",
    "save": "torchsparta.saving",
    "load": "torchsparta.saving",
    "SparseSite": "torchsparta.transform",
    "predict": "torchsparta.specialised",
    "pattern_mask": "torchsparta.specialised",
    "calibrate": "torchsparta.calibration",
    "SparseLinear": "torchsparta.modules",
    "SparseConv2d": "torchsparta.modules",
    "SparseBmm": "torchsparta.modules",
    "SparseAttention": "torchsparta.attention",
    "sliding_window": "torchsparta.attention",
    "nearby_3d": "torchsparta.attention",
    "with_global_tokens": "torchsparta.attention",
    "block_mask": "torchsparta.attention",
    "SpartaError": "torchsparta.errors",
    "MaskError": "torchsparta.errors",
    "ModelMismatch": "torchsparta.errors",
    "CaptureError": "torchsparta.errors",
    "VerificationError": "torchsparta.errors",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'torchsparta' has no attribute {name!r}; it has {__all__}")
    found = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
