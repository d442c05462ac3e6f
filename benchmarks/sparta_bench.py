"""Sparse layers against dense and sparse peers, interleaved in one run: python benchmarks/sparta_bench.py

Every case builds all contenders, then lets them take turns, round after round (A B C A B C …), so that whatever
slows the machine down slows all of them. A turn is a few calls that are not timed, to bring code and data back into
cache after the others' turns, and some that are. Printed and saved: median, quartiles, minimum, ratio to the fastest
dense contender, and the largest relative error against fp64. Turns during which another process took the core
away are left out (by the time that threads waited for a core, see `Turn.clean`); the counts are saved. Results go to
--json with machine and versions.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import sparta_models as models
import sparta_peers as peers
import torch
from torch import Tensor

from torchsparta.attention import SparseAttention, nearby_3d, patch_order, sliding_window
from torchsparta.calibration import calibrate
from torchsparta.cost import Rates, predict_parts
from torchsparta.cover import cover
from torchsparta.formats import SparseFormat
from torchsparta.formats.quantized import channel_scale
from torchsparta.rates import rates_for
from torchsparta.specialise import can_execute, specialise
from torchsparta.specialised import pattern_mask

M = 128
SHAPES = ((768, 768), (768, 3072), (3072, 768), (1024, 4096))
"""(K, N)."""
TURN_S = 0.02
"""Timed calls of a contender before the next one's turn take this long, and are at least two."""
WARM_S = 0.005
"""As long, and at least one call, goes before them untimed: what the others left in the caches is gone afterwards."""
PAUSE_S = 0.01
"""Before each turn: workers of the others' thread pools spin for some milliseconds after their last call."""
SPARSITIES = {"unstructured": (75, 90, 95, 99), "block 32x1": (75, 90, 95), "block 16x16": (75, 90, 95),
              "block 32x32": (75, 90, 95)}  # fmt: skip
TARGETS = {("unstructured", 75): 2, ("unstructured", 90): 4, ("unstructured", 95): 6, ("unstructured", 99): 12,
           ("block", 75): 3, ("block", 90): 7, ("block", 95): 12}  # fmt: skip
INT8_PATTERNS = ("dense", "block 32x32 75%", "block 32x32 90%", "unstructured 75%", "unstructured 90%")
INT8_TARGETS = {("dense", "dense"): 1.1, ("block", "75%"): 2, ("block", "90%"): 4,
                ("unstructured", "75%"): 1.2, ("unstructured", "90%"): 2}  # fmt: skip
INT8 = ("torch int8", "onnxruntime int8", "openvino int8")
DENSE = ("eager f32", "onnxruntime f32", "openvino f32", "roller f32")


@dataclass
class Row:
    """One contender of one case; times in seconds."""

    contender: str
    median_s: float | None
    low_s: float | None = None
    high_s: float | None = None
    min_s: float | None = None
    max_rel_err: float | None = None
    note: str = ""
    clean: int = 0
    turns: int = 0


@dataclass
class Case:
    name: str
    rows: list[Row] = field(default_factory=list)
    predicted_s: float | None = None
    format: str = ""
    target: float | None = None
    against: str = "f32"

    def row(self, contender: str) -> Row | None:
        return next((r for r in self.rows if r.contender == contender), None)

    def best_dense_s(self) -> float | None:
        """Median of the fastest dense contender of the precision that this case is measured against."""
        peers_of = {"int8": INT8, "roller": ("roller f32",)}.get(self.against, DENSE)
        found = [r.median_s for r in self.rows if r.contender in peers_of and r.median_s is not None]
        return min(found, default=None)


def waited_s() -> float:
    """Seconds that this process's threads have waited for a core, so far. 0 where the kernel does not tell."""
    total = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(task.read_text().split()[1])
        except (OSError, IndexError, ValueError):  # a thread that ended meanwhile
            continue
    return total * 1e-9


@dataclass(frozen=True)
class Turn:
    """Seconds of the calls of one turn, and how long threads of this process waited for a core meanwhile."""

    calls: tuple[float, ...]
    waited_s: float

    @property
    def clean(self) -> bool:
        """Whether no other process took the core away: waiting up to 2 % of the time is noise. Judged by the waiting
        alone, never by the times."""
        return self.waited_s <= 0.02 * sum(self.calls)


def take_turn(contender: peers.Contender) -> Turn:
    time.sleep(PAUSE_S)
    start = time.perf_counter()
    contender()
    while time.perf_counter() - start < WARM_S:
        contender()
    calls: list[float] = []
    before, begun = waited_s(), time.perf_counter()
    while len(calls) < 2 or time.perf_counter() - begun < TURN_S:
        start = time.perf_counter()
        own = contender()
        wall = time.perf_counter() - start
        calls.append(wall if own is None else own)
    return Turn(tuple(calls), waited_s() - before)


def run_interleaved(contenders: dict[str, peers.Contender | str], rounds: int) -> list[Row]:
    """Call every contender once a round; absent ones keep their reason."""
    turns: dict[str, list[Turn]] = {name: [] for name, c in contenders.items() if not isinstance(c, str)}
    for name in turns:
        contenders[name]()  # type: ignore[operator]
    for _ in range(rounds):
        for name, taken in turns.items():
            taken.append(take_turn(contenders[name]))  # type: ignore[arg-type]
    rows = []
    for name, contender in contenders.items():
        if isinstance(contender, str):
            rows.append(Row(name, None, note=contender))
            continue
        clean = [t for t in turns[name] if t.clean]
        times = [spent for t in clean or turns[name] for spent in t.calls]
        low, middle, high = statistics.quantiles(times, n=4)
        note = "" if clean else "the machine was busy: all turns counted"
        rows.append(
            Row(name, middle, low, high, min(times), note=note, clean=len(clean), turns=len(turns[name]))
        )
    return rows


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max() / want.abs().max().clamp(min=1e-30))


def linear_case(
    kind: str, sparsity: int, k: int, n: int, rounds: int, rates: Rates, deep: peers.DeepSparse | None
) -> Case:
    """One pattern on one shape: our cover's choice among all contenders."""
    pattern = f"{kind} {sparsity}%"
    mask = pattern_mask(pattern, (n, k))
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(1)) * mask
    x = torch.randn(M, k, generator=torch.Generator().manual_seed(2))
    found = cover(weight, mask, M, rates=rates)
    parts: tuple[SparseFormat, ...] = found.parts or found.packer(weight, mask)
    kernel = specialise(parts)
    want = x.double() @ weight.double().T
    error = relative_error(kernel(x), want)
    block = tuple(int(v) for v in kind.split()[1].split("x")) if kind.startswith("block") else None
    contenders: dict[str, peers.Contender | str] = {
        "torchsparta": lambda: _call(kernel, x),
        "eager f32": peers.eager(x, weight),
        "onnxruntime f32": peers.onnxruntime(x, weight),
        "openvino f32": peers.openvino(x, weight),
        "roller f32": peers.roller(x, weight),
        "torch bf16": peers.bf16(x, weight),
        "torch int8": peers.torch_int8(x, weight),
        "onnxruntime int8": peers.onnxruntime(x, weight, int8=True),
        "openvino int8": peers.openvino(x, weight, int8=True),
        "torch CSR": peers.torch_csr(x, weight),
    }
    if block is not None and block[0] == block[1]:
        contenders["torch BSR"] = peers.torch_bsr(x, weight, (block[0], block[1]))
    contenders["deepsparse"] = deep.contender(x, weight) if deep else "set DEEPSPARSE_PYTHON to run it"
    case = Case(f"{M}x{k}x{n} {pattern}", run_interleaved(contenders, rounds))
    case.predicted_s = predict_parts(parts, M, rates).time_s
    case.format = kernel.describe()
    case.target = TARGETS.get((kind.split()[0], sparsity))
    case.rows[0].max_rel_err = error
    return case


def int8_case(pattern: str, k: int, n: int, rounds: int, rates: Rates) -> Case:
    """Int8 weights and activations (quantised per token in the kernel) against dense int8 peers."""
    mask = pattern_mask(pattern, (n, k))
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(1)) * mask
    x = torch.randn(M, k, generator=torch.Generator().manual_seed(2))
    found = cover(weight, mask, M, rates=rates, bits=8, scale=channel_scale(weight, 8), integer=True)
    assert found.parts is not None
    kernel = specialise(found.parts, integer=True)
    rows = run_interleaved(
        {
            "torchsparta": lambda: _call(kernel, x),
            "torch int8": peers.torch_int8(x, weight),
            "onnxruntime int8": peers.onnxruntime(x, weight, int8=True),
            "openvino int8": peers.openvino(x, weight, int8=True),
            "eager f32": peers.eager(x, weight),
            "torch bf16": peers.bf16(x, weight),
        },
        rounds,
    )
    case = Case(f"{M}x{k}x{n} int8 {pattern}", rows, found.predicted_s, kernel.describe())
    kind = "unstructured" if "unstructured" in pattern else "dense" if pattern == "dense" else "block"
    case.target = INT8_TARGETS[kind, pattern.split()[-1]]
    case.against = "int8"
    case.rows[0].max_rel_err = relative_error(kernel(x), x.double() @ weight.double().T)
    return case


def model_case(name: str, rounds: int) -> Case:
    """A whole model, sparsified, against the same masked model run dense."""
    contenders, error, target = models.build(name)
    quiet = {n: c if isinstance(c, str) else _no_result(c) for n, c in contenders.items()}
    case = Case(name, run_interleaved(quiet, rounds), target=round(target, 2))
    case.against = "roller" if "channels" in name else "f32"
    case.rows[0].max_rel_err = error
    return case


def _no_result(run: models.Run) -> peers.Contender:
    def contender() -> None:
        run()

    return contender


def attention_case(name: str, mask: Tensor, heads: int, dim: int, order: Tensor | None, rounds: int) -> Case:
    """Sparse attention against dense SDPA with the mask, and FlexAttention where it runs."""
    s = mask.shape[0]
    q, k, v = (torch.randn(1, heads, s, dim, generator=torch.Generator().manual_seed(i)) for i in range(3))
    module = SparseAttention(mask, order=order)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    contenders: dict[str, peers.Contender | str] = {
        "torchsparta": lambda: _call(module, q, k, v),
        "SDPA with mask": lambda: _call(sdpa, q, k, v, attn_mask=mask),
        "SDPA without mask": lambda: _call(sdpa, q, k, v),
        "FlexAttention": _flex(q, k, v, mask),
    }
    with torch.no_grad():
        case = Case(name, run_interleaved(contenders, rounds), format=repr(module))
        case.rows[0].max_rel_err = relative_error(module(q, k, v), sdpa(q, k, v, attn_mask=mask).double())
    return case


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> peers.Contender | str:
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        s = mask.shape[0]
        blocks = create_block_mask(lambda b, h, i, j: mask[i, j], None, None, s, s, device="cpu")
        compiled = torch.compile(flex_attention)
        with torch.no_grad():
            compiled(q, k, v, block_mask=blocks)
    except Exception as error:  # needs a C++ compiler and a supported CPU; the row says what it said
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    return lambda: _call(compiled, q, k, v, block_mask=blocks)


def _call(f, *args, **kwargs) -> None:  # noqa: ANN001, ANN002, ANN003
    with torch.no_grad():
        f(*args, **kwargs)


def show(case: Case) -> None:
    """One block of text for a case."""
    best = case.best_dense_s()
    ours = case.rows[0].median_s
    print(f"\n{case.name}   [{case.format}]")
    if best and ours:
        target = f" (to reach {case.target})" if case.target else ""
        print(f"  {best / ours:.2f} x the best dense {case.against}{target}", end="")
        if case.predicted_s:
            print(f"; predicted {case.predicted_s * 1e6:.0f} us, measured {ours * 1e6:.0f} us", end="")
        print()
    for row in case.rows:
        if row.median_s is None:
            print(f"  {row.contender:<20} absent: {row.note}")
            continue
        spread = f"{row.low_s * 1e6:8.1f} .. {row.high_s * 1e6:8.1f}" if row.low_s and row.high_s else ""
        ratio = f"{row.median_s / ours:6.2f} x ours" if ours else ""
        busy = f"  ({row.note})" if row.note else ""
        error = f"  max rel err {row.max_rel_err:.1e}" if row.max_rel_err is not None else ""
        print(f"  {row.contender:<20} {row.median_s * 1e6:9.1f} us  [{spread}]  {ratio}{error}{busy}")


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    names = ("torch", "triton", "llvmlite", "onnxruntime", "openvino", "numpy")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    model = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.processor(),
    )  # fmt: skip
    return {
        "cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": os.getloadavg(),
        "python": platform.python_version(), "versions": versions,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sparsities", default="", help="only these, such as 75,90")
    parser.add_argument("--kinds", default="", help="only patterns or models whose name holds this")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--only",
        default="",
        help="run the sections whose name holds this: linear, int8, models, build, attention",
    )
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many of the shapes")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    why = can_execute(torch.device("cpu"))
    if why is not None:
        raise SystemExit(f"the kernels do not run here: {why}")
    try:
        calibrate()
    except RuntimeError as error:
        print(error)
    rates = rates_for("cpu")
    python = os.environ.get("DEEPSPARSE_PYTHON")
    deep = peers.DeepSparse(python) if python else None
    cases: list[Case] = []

    def add(case: Case) -> None:
        cases.append(case)
        show(case)
        if args.json:  # after every case: an interrupted run keeps what it has
            found = {"machine": machine(), "rates": asdict(rates), "cases": [asdict(c) for c in cases]}
            args.json.write_text(json.dumps(found, indent=1))

    try:
        if args.only in "linear":
            for k, n in SHAPES[: args.shapes]:
                for kind, sparsities in SPARSITIES.items():
                    for sparsity in sparsities:
                        wanted = not args.sparsities or str(sparsity) in args.sparsities.split(",")
                        if wanted and args.kinds in kind:
                            add(linear_case(kind, sparsity, k, n, args.rounds, rates, deep))
        if args.only in "int8":
            for k, n in SHAPES[: args.shapes]:
                for pattern in INT8_PATTERNS:
                    add(int8_case(pattern, k, n, args.rounds, rates))
        if args.only in "models":
            for name in models.WORK:
                if args.kinds in name:
                    add(model_case(name, max(3, args.rounds // 4)))
        if args.only in "build":
            cold_s, warm_s = models.build_times()
            print(f"\nBERT-base 90 %: transform, specialise and first call {cold_s:.1f} s cold (to reach 20), "
                  f"{warm_s:.1f} s from the cache (to reach 2)")  # fmt: skip
            add(Case("BERT-base 90 %: build cold", [Row("torchsparta", cold_s)]))
            add(Case("BERT-base 90 %: build from the cache", [Row("torchsparta", warm_s)]))
        if args.only in "attention":
            frames = (1, 32, 32)
            order = patch_order(frames, (1, 4, 8))
            add(
                attention_case(
                    "3DNA 1x5x5 on 1x32x32", nearby_3d(frames, (1, 5, 5)), 20, 64, order, args.rounds
                )
            )
            add(
                attention_case(
                    "window 256 of 4096", sliding_window(4096, 256), 12, 64, None, max(5, args.rounds // 4)
                )
            )
    finally:
        if deep:
            deep.close()
    compared = [(c.predicted_s, c.rows[0].median_s) for c in cases if c.predicted_s and c.rows[0].median_s]
    if compared:
        within = sum(abs(p - t) <= 0.2 * t for p, t in compared)
        print(f"\npredictions within 20 %: {within} of {len(compared)}")


if __name__ == "__main__":
    main()
