"""Fair timing: contenders take turns in one process, and what is compared is medians of the same rounds.

On a shared machine a single number means little: clocks and neighbours drift over seconds. Contenders that alternate
A B A B see the same drift, so ratios of their medians hold where absolute times do not.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, quartiles and the number of rounds behind them."""

    median_s: float
    low_s: float
    high_s: float
    rounds: int

    @property
    def spread(self) -> float:
        """Distance of the quartiles relative to the median: above about 0.2 the machine was busy."""
        return (self.high_s - self.low_s) / self.median_s if self.median_s else 0.0

    def __str__(self) -> str:
        median, low, high = (s * 1e3 for s in (self.median_s, self.low_s, self.high_s))
        return f"{median:.3f} ms (quartiles {low:.3f} … {high:.3f}, n={self.rounds})"

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def summarise(samples_s: list[float]) -> Timing:
    """Median and quartiles of measured seconds. Raises ValueError on an empty list."""
    if not samples_s:
        raise ValueError("no samples to summarise: the contender was never run")
    ordered = sorted(samples_s)
    quarter = len(ordered) // 4
    return Timing(statistics.median(ordered), ordered[quarter], ordered[-1 - quarter], len(ordered))


def time_calls(call: Callable[[], object], calls: int) -> float:
    """Mean seconds of `calls` consecutive calls."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def calls_for(call: Callable[[], object], target_s: float) -> int:
    """How many calls fill about `target_s`, from a few trial calls."""
    call()
    once = min(time_calls(call, 1) for _ in range(3))
    return max(1, int(target_s / max(once, 1e-7)))


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    turn_s: float = 0.02,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Timing]:
    """Time contenders in turns: each round gives every contender about `turn_s` seconds of calls."""
    counts = {name: calls_for(call, turn_s) for name, call in contenders.items()}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for done in range(rounds):
        for name, call in contenders.items():
            samples[name].append(time_calls(call, counts[name]))
        if progress is not None:
            progress(done + 1, rounds)
    return {name: summarise(s) for name, s in samples.items()}


def machine() -> dict[str, object]:
    """What a reader needs to judge a figure: processor, cores in use, versions."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in ("torch", "triton", "llvmlite", "transformers", "onnxruntime", "openvino", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def processor_name() -> str:
    """The model name that the operating system gives."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
