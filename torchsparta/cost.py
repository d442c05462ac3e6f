"""How long a sparse layer takes: a small additive model, calibrated once per machine.

    time = 2 launches
         + panel_s    * tokens * columns                (input panel: transposed, padded to whole panels)
         + epilogue_s * tokens * rows                   (transposed back, bias, activation, residual)
         + sum over parts: mac_s[class] * tokens * multiply-adds + list_s * panels * column lists

    block-dot kernel: launch + store_s * tokens * rows + mac_s[class] * tokens * multiply-adds + list_s * blocks
    int8 arithmetic:  one more launch + quantise_s * tokens * columns

Tokens are padded to whole panels. A class is the number of rows that share a load of the input ("1", "2", "4",
"8", "dense", "nm"), or the rows of a block that goes through `tl.dot` ("dot16", "dot32", "dotdense"); with the
value type where it is not the input's ("1/int8"), and "/i8" for int8 arithmetic. The dense alternative is PyTorch's
own product. Rates come, in this order, from `calibrate()` in this process, from the cache file that
it wrote, or from the device's peaks with shipped efficiencies.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from torchroller.device import DeviceSpec

from .formats import NM, Block, Dense, FineGrained, QuantizedInt8, RowGroups, SparseFormat, Tile
from .formats.base import Work, round_up
from .formats.quantized import Quantized
from .specialise import specialise, takes_dots
from .specialise.program import can_execute
from .vector_unit import vector_unit

SHIPPED_EFFICIENCY = {
    "1": 0.50, "2": 0.65, "4": 0.85, "8": 0.88, "dense": 0.85, "nm": 0.35, "dot16": 0.66, "dot32": 0.85,
    "dotdense": 0.95, "dot16/i8": 1.4, "dot32/i8": 2.3, "dotdense/i8": 2.6, "1/i8": 0.5,
}  # fmt: skip
"""Share of the float32 vector peak that each class reaches: measured with AVX-512 on Emerald Rapids, two cores."""

PATCH_FACTOR = 2.0
"""Panel elements of a k x k convolution cost about twice those of a matrix: their loads are gathers under a mask."""

AGREEING = 4
"""Calls that must agree before the fastest of them counts as undisturbed."""

BESIDE_BLOCKS = "1m"
"""Class of a fine-grained part beside blocks, whose group leaves it fewer tokens than it has alone."""

VERSION = 3


@dataclass(frozen=True)
class Rates:
    """Coefficients of the model, seconds each; `source` says where they come from."""

    device: str
    threads: int
    launch_s: float
    panel_s: float
    epilogue_s: float
    store_s: float
    quantise_s: float
    list_s: float
    mac_s: dict[str, float]
    dense_launch_s: float
    dense_mac_s: float
    source: str

    def plausible(self) -> bool:
        """Whether no measurement was swallowed by a disturbance: differences of disturbed times are zero or less."""
        fastest, slowest = min(self.mac_s.values()), max(self.mac_s.values())
        return fastest > 1e-13 / self.threads and slowest < 40 * fastest and self.launch_s < 1e-3

    def mac(self, kind: str) -> float:
        """Seconds per multiply-add of a class; the class without its value type where none was measured."""
        if kind in self.mac_s:
            return self.mac_s[kind]
        if kind.startswith(BESIDE_BLOCKS) and kind != BESIDE_BLOCKS:
            return self.mac(BESIDE_BLOCKS)
        return self.mac_s.get(kind.split("/")[0]) or self.mac_s["1"]


@dataclass(frozen=True)
class Prediction:
    """Predicted seconds of one way to compute a layer. flops counts multiply and add, padding included."""

    format: str
    time_s: float
    flops: int
    nbytes: int

    def __str__(self) -> str:
        return f"{self.format:<28} {self.time_s * 1e6:10.1f} us  {self.flops / 1e6:12.2f} MFLOP  {self.nbytes:>12,} B"


def work_class(part: SparseFormat) -> str:
    """The class of a packed part."""
    if isinstance(part, Quantized):
        return f"{work_class(part.inner)}/int{part.bits}"
    if takes_dots(part):
        return "dotdense" if isinstance(part, Dense) else f"dot{part.group}"  # type: ignore[attr-defined]
    if isinstance(part, Dense):
        return "dense"
    if isinstance(part, NM):
        return "nm"
    assert isinstance(part, RowGroups)
    return str(part.group)


def time_of(
    shape: tuple[int, int],
    works: Sequence[tuple[str, Work]],
    m: int,
    images: int,
    rates: Rates,
    group: int,
    integer: bool = False,
    panel_factor: float = 1.0,
) -> float:
    """Predicted seconds of one specialised layer on `images` times `m` tokens.

    panel_factor: cost of a panel element against that of a plain matrix (patches of an image are gathered).
    """
    n, k = shape
    if works[0][0].startswith("dot"):
        kind, work = works[0]
        tokens = round_up(m * images, min(128, max(16, 1 << (m * images - 1).bit_length())))
        blocks = 0 if kind.startswith("dotdense") else work.macs // max(1, work.group * work.group)
        total = rates.launch_s + tokens * (rates.store_s * n + rates.mac(kind) * work.macs)
        total += rates.list_s * blocks * -(-tokens // 128)
        return total + (rates.launch_s + rates.quantise_s * tokens * k if integer else 0.0)
    tokens = vector_unit().tokens(m, group)
    panels = -(-m // tokens) * images
    padded = panels * tokens
    per_column = panel_factor * rates.panel_s + (rates.quantise_s if integer else 0.0)
    total = 2 * rates.launch_s + padded * (per_column * round_up(k + 1, 64) + rates.epilogue_s * n)
    for kind, work in works:
        total += rates.mac(kind) * work.macs * padded + rates.list_s * work.lists * panels
    return total


def dense_time(shape: tuple[int, int], m: int, rates: Rates) -> float:
    """Predicted seconds of PyTorch's dense product."""
    return rates.dense_launch_s + rates.dense_mac_s * shape[0] * shape[1] * m


def predict_parts(
    parts: Sequence[SparseFormat], m: int, rates: Rates, images: int = 1, integer: bool = False
) -> Prediction:
    """The prediction for packed parts."""
    works = [(work_class(p).replace("/int8", "/i8") if integer else work_class(p), p.work()) for p in parts]
    group = max(w.group for _, w in works)
    if group > 1:
        works = [
            (BESIDE_BLOCKS + kind[1:] if w.group == 1 and kind[0] == "1" else kind, w) for kind, w in works
        ]
    return Prediction(
        " + ".join(p.describe() for p in parts),
        time_of(parts[0].shape, works, m, images, rates, group, integer),
        2 * sum(w.macs for _, w in works) * m * images,
        sum(p.nbytes for p in parts),
    )


# -- where rates come from -----------------------------------------------------------------------------------


def shipped_rates(spec: DeviceSpec, threads: int) -> Rates:
    """Rates from a device's peaks and the shipped efficiencies; `threads` of its units take part (CPU only)."""
    share = min(threads, spec.units) / spec.units if spec.is_cpu else 1.0
    peak = spec.peak("float32").vector_flops * share
    mac_s = {kind: 2.0 / (peak * e) for kind, e in SHIPPED_EFFICIENCY.items()}
    moved = 1.0e-10 / max(1, threads) if spec.is_cpu else 8.0 / spec.dram.bandwidth_bytes_per_s
    return Rates(
        device=spec.name,
        threads=threads,
        launch_s=spec.launch_s + spec.fork_s + 4e-6,
        panel_s=2 * moved,
        epilogue_s=2 * moved,
        store_s=moved / 4,
        quantise_s=4 * moved,
        list_s=4e-9 / max(1, threads),
        mac_s=mac_s,
        dense_launch_s=3e-6,
        dense_mac_s=2.0 / (peak * 0.9),
        source=f"shipped efficiencies, peaks of {spec.name}",
    )


def cache_file() -> Path:
    """Where `calibrate` keeps its figures: one file per machine model and number of threads."""
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "torchsparta"
    key = f"{_processor()}-{torch.get_num_threads()}t-v{VERSION}"
    return root / f"rates-{''.join(c if c.isalnum() else '_' for c in key)}.json"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


_measured: dict[tuple[str, int], Rates] = {}


def rates_for(device: torch.device | str = "cpu") -> Rates:
    """The rates that predictions on this device use. Measures nothing; see `calibrate`."""
    device = torch.device(device)
    threads = torch.get_num_threads()
    known = _measured.get((device.type, threads))
    if known is not None:
        return known
    if device.type == "cpu":
        cached = _read_cache(threads)
        if cached is not None:
            _measured[(device.type, threads)] = cached
            return cached
        return shipped_rates(_spec("cpu"), threads)
    return shipped_rates(_spec(str(device)), 1)


def _read_cache(threads: int) -> Rates | None:
    try:
        read = json.loads(cache_file().read_text())
        rates = Rates(**read)
    except (OSError, ValueError, TypeError):
        return None  # absent, unreadable or of another version: the shipped rates stand in
    return rates if rates.threads == threads else None


@lru_cache(maxsize=8)
def _spec(device: str) -> DeviceSpec:
    if device == "cpu":
        return DeviceSpec.for_target("cpu")
    properties = torch.cuda.get_device_properties(device)
    if getattr(torch.version, "hip", None):
        return DeviceSpec.for_target(
            "hip", properties.gcnArchName.split(":")[0], properties.multi_processor_count
        )
    return DeviceSpec.for_target(
        "cuda", properties.major * 10 + properties.minor, properties.multi_processor_count
    )


# -- calibration ---------------------------------------------------------------------------------------------


def measure(
    run: Callable[[], object], least_s: float = 0.02, least: int = 12, most: int = 300, most_s: float = 0.5
) -> float:
    """Seconds of an undisturbed call: the fastest of at least `least` calls and `least_s` seconds, after one warm-up.

    What disturbs a call only ever adds to it (other processes, a thread that was descheduled at a barrier). One fast
    call may be luck of the clock, and where all were disturbed no two are alike: it goes on, up to `most_s`, until
    `AGREEING` calls lie within 5 % of the fastest.
    """
    run()
    times: list[float] = []
    spent = 0.0
    while spent < most_s:
        if len(times) >= least and (spent >= least_s or len(times) >= most):
            nearest = 1.05 * min(times)
            if sum(t <= nearest for t in times) >= AGREEING:
                break
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
        spent += times[-1]
    return min(times)


def calibrate(save: bool = True) -> Rates:
    """Measure this CPU's rates, about three seconds with warm kernel caches; keep them for the process and in a file.

    Raises RuntimeError where kernels cannot run natively (no Triton backend, or the interpreter is asked for), and
    where the machine is so busy that three tries gave figures that no machine has.
    """
    why = can_execute(torch.device("cpu"))
    if why is None and os.environ.get("TRITON_INTERPRET", "0") == "1":
        why = "TRITON_INTERPRET=1 runs kernels in the interpreter, whose times mean nothing"
    if why is not None:
        raise RuntimeError(f"calibrate: kernels do not run natively here: {why}")
    for _ in range(3):
        rates = _measured_rates()
        if rates.plausible():
            break
    else:
        raise RuntimeError(
            f"calibrate: the machine was too busy to measure {rates.threads} threads; rates of the last try: {rates}. "
            "Calibrate when it is idle; until then predictions use shipped rates"
        )
    _measured[("cpu", rates.threads)] = rates
    if save:
        _write_cache(rates)
    return rates


def _measured_rates() -> Rates:
    threads = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    m = 128

    def linear_time(parts: tuple[SparseFormat, ...], tokens: int = m, integer: bool = False) -> float:
        x = torch.randn(tokens, parts[0].shape[1], generator=generator)
        kernel = specialise(parts, integer=integer)
        kernel(x)
        return measure(lambda: kernel(x))

    def empty(n: int, k: int) -> tuple[SparseFormat, ...]:
        return (FineGrained.pack(torch.zeros(n, k), None, Tile(32)),)

    launch = linear_time(empty(32, 64), 16) / 2
    panel = max(1e-13, (linear_time(empty(32, 2048)) - 2 * launch) / (m * 2048))
    epilogue = max(1e-13, (linear_time(empty(2048, 64)) - 2 * launch) / (m * 2048))
    base = Rates(
        _processor(), threads, launch, panel, epilogue, 0.0, 0.0, 0.0, {"1": 0.0}, 0.0, 0.0, "measured on this machine"
    )  # fmt: skip

    w = torch.randn(512, 768, generator=generator)
    sparse = [torch.rand(512, 768, generator=generator) < share for share in (0.02, 0.25)]
    sides = []
    for mask in sparse:
        parts = (FineGrained.pack(w, mask, fine_tile(768, float(mask.float().mean()))),)
        spent = linear_time(parts) - predict_parts(parts, m, base).time_s
        sides.append((spent, parts[0].work(), -(-m // vector_unit().tokens(m, 1))))
    (t0, w0, panels), (t1, w1, _) = sides
    mac = max(1e-14, (t1 - t0) / ((w1.macs - w0.macs) * m)) if w1.macs > w0.macs else 1e-12
    lists = max(0.0, (t0 - mac * w0.macs * m) / max(1, w0.lists * panels))
    base = replace(base, list_s=lists, mac_s={"1": mac})

    quarter = torch.arange(768).expand(512, 768) % 4 < 2
    runs = {
        g: (torch.rand(512 // g, 768, generator=generator) < 0.25).repeat_interleave(g, 0) for g in (2, 4, 8)
    }
    unit = vector_unit()
    runs = {g: mask for g, mask in runs.items() if g <= unit.max_group}
    cases: dict[str, SparseFormat] = {str(g): Block.pack(w, runs[g], (g, 1), Tile(32)) for g in runs}
    cases["dense"] = Dense.pack(w, None, Tile(32))
    cases["nm"] = NM.pack(w, quarter)
    cases["1/int8"] = QuantizedInt8.pack(w, sparse[1], fine=True, tile=fine_tile(768, 0.25))
    most = unit.max_group
    cases[f"{most}/int8"] = QuantizedInt8.pack(w, runs[most], block=(most, 1), tile=Tile(32))
    cases["dense/int8"] = QuantizedInt8.pack(w, None, tile=Tile(32))
    mac_s = {"1": mac}
    nothing = torch.zeros(2048, 64)
    store = linear_time((Block.pack(nothing, None, (32, 32), Tile(32), 32),)) - launch
    base = replace(base, store_s=max(1e-13, store / (m * 2048)))
    empty8 = (QuantizedInt8.pack(torch.zeros(32, 2048), None, block=(32, 32), tile=Tile(32), group=32),)
    quantise = max(1e-13, (linear_time(empty8, integer=True) - 2 * launch) / (m * 2048))
    base = replace(base, quantise_s=quantise)
    blocks = {b: _random_blocks(512, 768, b, 0.25, generator) for b in (16, 32)}
    for b, mask in blocks.items():
        cases[f"dot{b}"] = Block.pack(w, mask, (b, b), Tile(b), b)
        cases[f"dot{b}/i8"] = QuantizedInt8.pack(w, mask, block=(b, b), tile=Tile(b), group=b)
    cases["dotdense"] = Dense.pack(w, None, Tile(64), 64)
    cases["dotdense/i8"] = QuantizedInt8.pack(w, None, tile=Tile(64), group=64)
    cases["1/i8"] = cases["1/int8"]
    for kind, part in cases.items():
        known = replace(base, mac_s={**mac_s, kind: 1e-30})
        integer = kind.endswith("/i8")
        spent = linear_time((part,), integer=integer) - predict_parts((part,), m, known, 1, integer).time_s
        mac_s[kind] = max(1e-14, spent / (part.work().macs * m))

    few = runs[most] & (torch.rand(512 // most, 768, generator=generator) < 0.2).repeat_interleave(most, 0)
    mixed = (
        Block.pack(w, few, (most, 1), Tile(32)),
        FineGrained.pack(w, sparse[1] & ~few, Tile(32), unit.mixed_unroll),
    )
    known = replace(base, mac_s={**mac_s, BESIDE_BLOCKS: 1e-30})
    spent = linear_time(mixed) - predict_parts(mixed, m, known).time_s
    mac_s[BESIDE_BLOCKS] = max(1e-14, spent / (mixed[1].work().macs * m))

    x, small = torch.randn(m, 768, generator=generator), torch.randn(16, 64, generator=generator)
    tiny = torch.randn(32, 64, generator=generator)
    dense_launch = measure(lambda: torch.nn.functional.linear(small, tiny))
    dense = measure(lambda: torch.nn.functional.linear(x, w))
    return replace(
        base,
        mac_s=mac_s,
        dense_launch_s=dense_launch,
        dense_mac_s=max(1e-14, (dense - dense_launch) / (w.numel() * m)),
    )


def _random_blocks(n: int, k: int, block: int, share: float, generator: torch.Generator) -> torch.Tensor:
    grid = torch.rand(n // block, k // block, generator=generator) < share
    return grid.repeat_interleave(block, 0).repeat_interleave(block, 1)


def _write_cache(rates: Rates) -> None:
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps(asdict(rates), indent=1))
        partial.replace(path)
    except OSError:
        pass  # a read-only home: the figures live as long as the process


# -- tiles ---------------------------------------------------------------------------------------------------


def fine_tile(k: int, density: float) -> Tile:
    """The tile of a fine-grained part: columns in blocks that fit the first-level cache where lists stay long.

    A block of 128 columns by 64 tokens is 32 KiB, all of the first-level cache of many cores. With fewer than about ten
    alive elements a row and block, the cost of a list outweighs that of reading the panel from the second-level cache.
    """
    fits = vector_unit().panel_columns()
    columns = fits if density * fits >= 10 else 2 * fits if density * 2 * fits >= 10 else 0
    return Tile(64, columns if columns and columns < k else 0)
