"""Record what NNI 3.0 returns, for tests on machines without it: `python tests/sparta/record_nni.py`.

Needs an environment with nni==3.0, setuptools<81 and torch. Writes data/nni_runs.safetensors and, beside it,
data/nni_runs.json with everything that is not a tensor.
"""

from __future__ import annotations

import json
from pathlib import Path

import nni_runs
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent / "data"


def main() -> None:
    tensors, plain = {}, {}
    for name, run in {**nni_runs.pruners(), **nni_runs.quantizers()}.items():
        torch.manual_seed(0)
        _flatten(run(), (name,), tensors, plain)
    HERE.mkdir(exist_ok=True)
    save_file(tensors, str(HERE / "nni_runs.safetensors"))
    (HERE / "nni_runs.json").write_text(json.dumps(plain, indent=0, sort_keys=True) + "\n")


def _flatten(value, path, tensors, plain):
    if isinstance(value, torch.Tensor):
        tensors["/".join(path)] = value.detach().clone().contiguous()
    elif isinstance(value, dict):
        for key, item in value.items():
            _flatten(item, (*path, key), tensors, plain)
    elif value is not None:
        plain["/".join(path)] = value


if __name__ == "__main__":
    main()
