"""A saved sparse model against the same model with dense layers, in turns: `python -m torchsparta bench`."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx

from .api import SparsityInfo, difference
from .errors import SpartaError
from .saving import load
from .transform import DenseAttention, DenseSite, SparseSite

OPEN_SIZE = 8
"""What stands for a size that the model leaves open."""


@dataclass(frozen=True)
class Race:
    """Seconds of each call, in the order of the calls; worst_difference relative to the largest output."""

    sparse_s: tuple[float, ...]
    dense_s: tuple[float, ...]
    worst_difference: float
    input_shapes: tuple[tuple[int, ...], ...]
    threads: int

    def __str__(self) -> str:
        shapes = ", ".join("x".join(map(str, s)) for s in self.input_shapes)
        lines = [f"inputs {shapes}; {self.threads} threads; {len(self.sparse_s)} calls of each, in turns"]
        for name, times in (("dense", self.dense_s), ("sparse", self.sparse_s)):
            low, middle, high = statistics.quantiles(times, n=4)
            lines.append(f"{name:<8}{middle * 1e3:10.3f} ms  [{low * 1e3:.3f} .. {high * 1e3:.3f}]")
        ratio = statistics.median(self.dense_s) / statistics.median(self.sparse_s)
        lines.append(
            f"the sparse model is {ratio:.2f} x as fast as its dense layers of the same (shrunk) shapes; "
            f"largest difference {self.worst_difference:.1e} of the largest output"
        )
        return "\n".join(lines)


def race(path: Path, rounds: int = 20) -> Race:
    """Load the file twice, with the chosen kernels and with dense layers, and run both on the same random inputs."""
    if rounds < 2:
        raise SpartaError(f"bench: at least 2 rounds make quartiles, got {rounds}")
    sparse, dense = load(path), load(path, chooser=_dense)
    inputs = random_inputs(sparse)
    with torch.no_grad():
        try:
            worst = difference(dense(*inputs), sparse(*inputs))
        except (TypeError, RuntimeError, IndexError) as error:
            raise SpartaError(
                f"{path}: the model does not run on random inputs ({type(error).__name__}: {error}); "
                "bench makes positional tensors only: time it in your own program"
            ) from error
        times: dict[int, list[float]] = {0: [], 1: []}
        for _ in range(rounds):
            for which, model in enumerate((sparse, dense)):
                model(*inputs)
                start = time.perf_counter()
                model(*inputs)
                times[which].append(time.perf_counter() - start)
    shapes = tuple(tuple(x.shape) for x in inputs)
    return Race(tuple(times[0]), tuple(times[1]), worst, shapes, torch.get_num_threads())


def random_inputs(model: fx.GraphModule) -> tuple[Tensor, ...]:
    """Tensors of the shapes and dtypes that the model was specialised for; integers are 0 or 1."""
    info = model.meta["sparta"]
    assert isinstance(info, SparsityInfo)
    generator = torch.Generator().manual_seed(0)
    dtypes = info.input_dtypes or ("float32",) * len(info.input_shapes)
    made = []
    for shape, name in zip(info.input_shapes, dtypes):
        sizes = tuple(OPEN_SIZE if s is None else s for s in shape)
        dtype = getattr(torch, name)
        if dtype.is_floating_point:
            made.append(torch.randn(sizes, generator=generator, dtype=torch.float32).to(dtype))
        else:
            made.append(torch.randint(0, 2, sizes, generator=generator).to(dtype))
    return tuple(made)


def _dense(site: SparseSite) -> DenseSite | DenseAttention:
    return DenseAttention(site) if site.op == "attention" else DenseSite(site)
