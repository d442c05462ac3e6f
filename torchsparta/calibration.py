"""Measuring this CPU's rates of the cost model, when asked: `torchsparta.calibrate()`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from .cost import BESIDE_BLOCKS, PANEL_BYTES, Rates, fine_tile, predict_parts
from .formats import NM, Block, Dense, FineGrained, QuantizedInt8, SparseFormat, Tile
from .rates import keep, processor
from .specialise import specialise
from .specialise.program import can_execute
from .vector_unit import vector_unit

AGREEING = 4
"""Calls that must agree before the fastest of them counts as undisturbed."""


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
    keep(rates, save)
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
    # The input and its panel within the second-level cache, and well beyond it.
    inside, beyond = 512, max(2048, 2 * vector_unit().l2_bytes // (PANEL_BYTES * m))
    panel = max(1e-13, (linear_time(empty(32, inside)) - 2 * launch) / (m * inside))
    spill = max(0.0, (linear_time(empty(32, beyond)) - 2 * launch) / (m * beyond) - panel)
    epilogue = max(1e-13, (linear_time(empty(2048, 64)) - 2 * launch) / (m * 2048))
    base = Rates(
        processor(), threads, launch, panel, epilogue, 0.0, 0.0, 0.0, {"1": 0.0}, 0.0, 0.0, "measured on this machine",
        spill,
    )  # fmt: skip

    w = torch.randn(512, 768, generator=generator)
    fine = torch.rand(512, 768, generator=generator) < 0.25
    # Many short lists and few long ones: two equations for the cost of a list and of a multiply-add.
    thin = fine & (torch.rand(512, 768, generator=generator) < 0.4)
    sides = []
    for mask, tile in ((thin, Tile(64, 64)), (fine, fine_tile(768, 0.25))):
        parts = (FineGrained.pack(w, mask, tile),)
        spent = linear_time(parts) - predict_parts(parts, m, base).time_s
        sides.append(
            (spent, parts[0].work().macs * m, parts[0].work().lists * -(-m // vector_unit().tokens(m, 1)))
        )
    (t0, m0, l0), (t1, m1, l1) = sides
    determinant = m1 * l0 - m0 * l1
    mac, lists = (t1 * l0 - t0 * l1) / determinant, (t0 * m1 - t1 * m0) / determinant
    if lists < 0:  # disturbed, or a CPU that predicts the end of every list
        mac, lists = t1 / m1, 0.0
    mac = max(1e-14, mac)
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
    cases["1/int8"] = QuantizedInt8.pack(w, fine, fine=True, tile=fine_tile(768, 0.25))
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
        FineGrained.pack(w, fine & ~few, Tile(32), unit.mixed_unroll),
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
