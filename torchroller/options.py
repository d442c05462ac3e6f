"""The options of `torch.compile(model, backend="roller", options={...})`: one frozen dataclass."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import OptionError

MODES = ("default", "max-autotune", "max-autotune-no-cudagraphs", "reduce-overhead")
EXECUTORS = ("native", "interpret")


@dataclass(frozen=True)
class Options:
    """What a user may turn.

    strict:        raise instead of calling ATen where a node cannot be lowered
    executor:      "native" compiles kernels for the device; "interpret" runs them with Triton's interpreter
    measure:       time the `topk` best predicted candidates of each kernel and keep the fastest
                   (set by mode="max-autotune")
    topk:          how many rPrograms the search ranks and keeps per kernel
    pack_weights:  under inference, keep constant matmul operands in a tiled layout
    fuse:          fuse operators; False gives one kernel per operator (to debug numerics)
    check_indices: raise IndexError for an out-of-range embedding or index, as ATen does
    cache_dir:     where compiled kernels are kept; None: $TORCHROLLER_CACHE_DIR or ~/.cache/torchroller
    cuda_graphs:   on a CUDA device record inference as one CUDA graph and replay it (set by mode="reduce-overhead")
    dump_dir:      write every kernel's tensor expression and Triton source there
    """

    strict: bool = False
    executor: str = "native"
    measure: bool = False
    topk: int = 10
    pack_weights: bool = True
    fuse: bool = True
    check_indices: bool = True
    cache_dir: str | None = None
    cuda_graphs: bool = False
    dump_dir: str | None = None


def parse_options(mode: str | None, options: Mapping[str, Any] | None) -> Options:
    """Options from the arguments of torch.compile.

    Raises OptionError for an unknown mode, an unknown name (naming the closest valid one) or a value of
    the wrong type.
    """
    if mode is not None and mode not in MODES:
        raise OptionError(
            f"unknown mode {mode!r} for backend 'roller'{_closest(mode, MODES)}; one of {list(MODES)}"
        )
    values = dict(options or {})
    fields = {f.name: f for f in dataclasses.fields(Options)}
    for name, value in values.items():
        if name not in fields:
            raise OptionError(
                f"unknown option {name!r} for backend 'roller'{_closest(name, fields)}; valid options: {sorted(fields)}"
            )
        _check_type(name, value, str(fields[name].type))
    parsed = Options(**values)
    if parsed.executor not in EXECUTORS:
        raise OptionError(
            f"option 'executor' is {parsed.executor!r}{_closest(parsed.executor, EXECUTORS)}; one of {list(EXECUTORS)}"
        )
    if parsed.topk < 1:
        raise OptionError(f"option 'topk' is {parsed.topk}; it must be at least 1")
    if mode is not None and mode.startswith("max-autotune") and "measure" not in values:
        parsed = dataclasses.replace(parsed, measure=True)
    if mode == "reduce-overhead" and "cuda_graphs" not in values:
        parsed = dataclasses.replace(parsed, cuda_graphs=True)
    return parsed


def _check_type(name: str, value: Any, annotation: str) -> None:
    allowed = {"bool": bool, "int": int, "str": str}
    kinds = [part.strip() for part in annotation.split("|")]
    if value is None and "None" in kinds:
        return
    for kind in kinds:
        if (
            kind in allowed
            and isinstance(value, allowed[kind])
            and (kind != "int" or not isinstance(value, bool))
        ):
            return
    raise OptionError(f"option {name!r} is {value!r} ({type(value).__name__}); expected {annotation}")


def _closest(name: str, valid: Any) -> str:
    found = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""
