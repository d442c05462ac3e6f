"""One command for a machine with a GPU: is everything right there, and how fast is it against whom?

python benchmarks/gpu.py [--only PART or CASE ...] [--peers a,b] [--rounds N] [--prepare N] [--json FILE]
python benchmarks/gpu.py --dry-run [--json FILE]      the same plan, tiny, on the CPU: to check the command itself

Parts, in this order: `operators` (the 119 of the ROLLER evaluation at the paper's batch; eager is cuBLAS and cuDNN),
`matmul` (bf16 8192^3; the goal is 0.95 of cuBLAS), `model` (BERT-large, GPT-2, a Llama-like one, ResNet-50, compile
seconds and mode="reduce-overhead" included). Every result is compared with double precision first: a wrong one is
printed, kept out of the table and makes the exit status 1. Figures go to benchmarks/results/gpu-<name>.json, case by
case; `python benchmarks/report.py` makes the documents from them.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import functools
import gc
import json
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402
from bench import about, cold_caches  # noqa: E402
from torch import nn  # noqa: E402

from torchroller import operators  # noqa: E402
from torchroller.timing import Timing, summarise  # noqa: E402

PEERS: dict[str, dict[str, Any] | None] = {  # arguments of torch.compile
    "eager": None,
    "inductor": {},
    "inductor-max": {"mode": "max-autotune"},
    "roller": {"backend": "roller"},
    "roller-max": {"backend": "roller", "mode": "max-autotune"},
    "roller-graphs": {"backend": "roller", "mode": "reduce-overhead"},
}
PARTS = ("operators", "matmul", "model")
OF_PART = {
    "operators": ("eager", "inductor-max", "roller", "roller-max"),
    "matmul": ("eager", "inductor-max", "roller", "roller-max"),
    "model": ("eager", "inductor", "inductor-max", "roller", "roller-max", "roller-graphs"),
}
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}  # of the largest magnitude
_TURN_S = 0.02


@dataclass(frozen=True)
class Job:
    """One case: `make` gives a function and its inputs on the default device; `flops` of one call, 0 where nobody
    counts them."""

    name: str
    part: str
    group: str
    make: Callable[[], tuple[Callable[..., Any], tuple[torch.Tensor, ...]]]
    dtype: torch.dtype = torch.float32
    flops: float = 0.0
    bar: str = ""


def jobs(tiny: bool) -> list[Job]:
    """The whole plan; `tiny` sizes run in seconds on a CPU."""
    found = []
    for o in operators.read():
        scaled = o.scaled(1 << 20) if tiny else o
        found.append(Job(o.id, "operators", f"operators: {o.op}", scaled.call, flops=float(scaled.expr().flops()),
                         bar="the fastest of eager and Inductor max-autotune"))  # fmt: skip
    side = 64 if tiny else 8192
    found.append(Job(f"bf16_{side}x{side}x{side}", "matmul", "matmul bf16", lambda: _product(side), torch.bfloat16,
                     2.0 * side**3, "0.95 x cuBLAS"))  # fmt: skip
    models = {"bert-large": _bert, "gpt2": _gpt2, "llama-bf16": _llama, "resnet50": _resnet}
    for name, model in models.items():
        dtype = torch.bfloat16 if name.endswith("bf16") else torch.float32
        make = functools.partial(model, tiny)
        found.append(Job(name, "model", "model", make, dtype, bar="Inductor max-autotune"))
    return found


def _product(side: int) -> tuple[Callable[..., Any], tuple[torch.Tensor, ...]]:
    return torch.mm, (torch.randn(side, side).bfloat16(), torch.randn(side, side).bfloat16())


class _Output(nn.Module):
    """A transformers model reduced to the one tensor that is compared."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).last_hidden_state


def _tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 1000, (batch, length))


def _bert(tiny: bool) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from transformers import BertConfig, BertModel

    size = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128,
            "vocab_size": 1000} if tiny else {"hidden_size": 1024, "num_hidden_layers": 24,
            "num_attention_heads": 16, "intermediate_size": 4096}  # fmt: skip
    return _Output(BertModel(BertConfig(**size))).eval(), (_tokens(1, 16) if tiny else _tokens(8, 512),)


def _gpt2(tiny: bool) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from transformers import GPT2Config, GPT2Model

    size = {"n_embd": 64, "n_layer": 1, "n_head": 2, "vocab_size": 1000} if tiny else {}
    model = GPT2Model(GPT2Config(use_cache=False, **size))
    return _Output(model).eval(), (_tokens(1, 16) if tiny else _tokens(8, 1024),)


def _llama(tiny: bool) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from transformers import LlamaConfig, LlamaModel

    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": 1000} if tiny else {"hidden_size": 2048, "intermediate_size": 5632,
            "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}  # fmt: skip
    model = LlamaModel(LlamaConfig(use_cache=False, **size)).to(torch.bfloat16)
    return _Output(model).eval(), (_tokens(1, 16) if tiny else _tokens(4, 1024),)


def _resnet(tiny: bool) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from transformers import ResNetConfig, ResNetModel

    size = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]} if tiny else {}
    model = ResNetModel(ResNetConfig(**size))
    return _Output(model).eval(), (torch.randn(1, 3, 32, 32) if tiny else torch.randn(64, 3, 224, 224),)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], calls: int, device: torch.device) -> float:
    """Mean seconds of consecutive calls, with nothing left on the device before or after."""
    wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    wait(device)
    return (time.perf_counter() - start) / calls


def error_of(got: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest error relative to the largest magnitude; infinite where one is finite and the other is not."""
    got = got.double()
    if got.shape != exact.shape or not torch.equal(torch.isfinite(got), torch.isfinite(exact)):
        return float("inf")
    known = torch.isfinite(exact)
    scale = exact[known].abs().max().clamp_min(1e-30) if known.any() else torch.tensor(1.0)
    return float(((got - exact)[known].abs().max() / scale).item()) if known.any() else 0.0


def measure(job: Job, peers: list[str], rounds: int, device: torch.device) -> dict[str, Any]:
    """One case in the schema of bench.py: compile everybody, compare with fp64, then take turns."""
    fn, inputs = made(job, device)
    skipped: dict[str, str] = {}
    ready: dict[str, tuple[Callable[[], Any], float, float, str]] = {}
    exact = exactly(fn, inputs)
    for name in peers:
        torch._dynamo.reset()
        try:
            how = PEERS[name]
            compiled: Any = fn if how is None else torch.compile(fn, **how)
            call = lambda compiled=compiled: compiled(*inputs)  # noqa: E731
            start = time.perf_counter()
            got = call()
            wait(device)
            compile_s = time.perf_counter() - start
            error = error_of(got, exact)
            if error > _TOLERANCE[job.dtype]:
                skipped[name] = (
                    f"WRONG: error {error:.1e} of the largest magnitude, allowed {_TOLERANCE[job.dtype]:.0e}"
                )
                continue
            ready[name] = call, compile_s, error, _notes(name)
        except Exception as failure:
            skipped[name] = (
                f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"[:300]
            )
    del exact
    counts = {n: max(1, int(_TURN_S / max(seconds(c[0], 1, device), 1e-7))) for n, c in ready.items()}
    samples: dict[str, list[float]] = {n: [] for n in ready}
    for _ in range(rounds):
        for name, (call, *_rest) in ready.items():
            samples[name].append(seconds(call, counts[name], device))
    rows = {}
    for name, (_, compile_s, error, notes) in ready.items():
        rows[name] = {**summarise(samples[name]).as_dict(), "samples_s": samples[name], "compile_s": compile_s,
                      "error": error, "notes": notes}  # fmt: skip
    return {"case": job.name, "group": job.group, "bar": job.bar, "flops": job.flops, "bytes": 0,
            "load": about(0)["load"],
            "compiled_alone": job.part == "model", "rows": rows, "skipped": skipped}  # fmt: skip


def made(job: Job, device: torch.device) -> tuple[Callable[..., Any], tuple[torch.Tensor, ...]]:
    """The function of a case and its inputs, made where they are used: random numbers of 1.3 GB take a CPU seconds."""
    torch.manual_seed(0)
    with device:
        fn, inputs = job.make()
    return (fn.to(device) if isinstance(fn, nn.Module) else fn), tuple(x.to(device) for x in inputs)


def prepare(names: list[str], device: torch.device) -> None:
    """Compiles cases for `roller` in a process of its own, so that Triton's cache has their kernels."""
    only_float32()
    for job in jobs(tiny=False):
        if job.name in names:
            torch._dynamo.reset()
            with contextlib.suppress(Exception), torch.no_grad():  # what fails is told where it is measured
                fn, inputs = made(job, device)
                torch.compile(fn, backend="roller")(*inputs)
                del fn, inputs
            torch.cuda.empty_cache()


def prepared(chosen: list[Job], processes: int, device: torch.device) -> None:
    """`prepare` for all cases, `processes` at a time."""
    names = [j.name for j in chosen]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        list(pool.map(prepare, [names[n::processes] for n in range(processes)], [device] * processes))


def only_float32() -> None:
    """float32 means float32: products of TF32 are another type's."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def exactly(fn: Callable[..., Any], inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The result in double precision, on the same device."""
    import copy

    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    return (copy.deepcopy(fn).double() if isinstance(fn, nn.Module) else fn)(*wide)


def _notes(name: str) -> str:
    if not name.startswith("roller"):
        return ""
    from torchroller import backend
    from torchroller.collect import collect
    from torchroller.explaining import device_of

    plans = backend.last_plans()[-1:]
    report = collect(plans, device_of(plans))
    (nodes, all_nodes), (flops, all_flops) = report.nodes, report.flops
    share = f", {flops / all_flops:.0%} of FLOPs" if all_flops else ""
    return f"{nodes / max(all_nodes, 1):.0%} of nodes{share} in our kernels"


def describe(result: dict[str, Any]) -> Iterator[str]:
    """One case as text, fastest first."""
    yield f"{result['case']}   goal: {result['bar']}"
    for name, row in sorted(result["rows"].items(), key=lambda item: item[1]["median_s"]):
        rate = f"{result['flops'] / row['median_s'] / 1e12:8.2f} TFLOP/s" if result["flops"] else ""
        timing = Timing(row["median_s"], row["low_s"], row["high_s"], row["rounds"])
        yield f"  {name:13s} {timing} {rate} compile {row['compile_s']:.2f} s, error {row['error']:.1e} {row['notes']}"
    for name, why in result["skipped"].items():
        yield f"  {name:13s} not timed: {why}"


def facts(device: torch.device) -> dict[str, Any]:
    """The machine, its GPU, and what decides how PyTorch uses it."""
    found = about(torch.get_num_threads())
    if device.type != "cuda":
        return {**found, "device": "dry run on the CPU, tiny sizes: figures mean nothing"}
    properties = torch.cuda.get_device_properties(device)
    return {**found, "device": properties.name, "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count, "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda, "hip": torch.version.hip, "cudnn": torch.backends.cudnn.version(),
            "tf32": torch.backends.cuda.matmul.allow_tf32}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help=f"parts ({', '.join(PARTS)}) or names of cases")
    parser.add_argument(
        "--peers", help=f"of {', '.join(PEERS)}; default: those that make sense for each part"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--prepare", type=int, default=0, metavar="N", help="first compile roller's kernels in N processes"
    )
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/gpu-<name>.json")
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny sizes on the CPU, eager and roller, two rounds"
    )
    args = parser.parse_args(argv)
    if not args.dry_run and not torch.cuda.is_available():
        print(
            "gpu: PyTorch sees no GPU here; --dry-run checks the command itself on the CPU", file=sys.stderr
        )
        return 2
    device = torch.device("cpu" if args.dry_run else "cuda")
    chosen = [j for j in jobs(args.dry_run) if not args.only or j.part in args.only or j.name in args.only]
    asked = args.peers.split(",") if args.peers else ["eager", "roller"] if args.dry_run else list(PEERS)
    unknown = [n for n in asked if n not in PEERS]
    if unknown or not chosen:
        parser.error(
            f"unknown contenders {unknown}" if unknown else f"no case matches {args.only}; parts are {PARTS}"
        )
    if not args.dry_run:
        only_float32()
    machine = facts(device)
    slug = re.sub(r"\W+", "-", str(machine["device"]).lower()).strip("-")
    default = (
        Path(tempfile.gettempdir()) / "gpu-dry-run.json"
        if args.dry_run
        else Path(__file__).parent / "results" / f"gpu-{slug}.json"
    )
    path = args.json or default
    results: list[dict[str, Any]] = []
    start = time.monotonic()
    caches = cold_caches()
    try:
        if args.prepare:
            prepared(chosen, args.prepare, device)
            machine["compile_s"] = (
                f"with kernels from Triton's cache, compiled before in {args.prepare} processes"
            )
        for number, job in enumerate(chosen, 1):
            print(f"[{number}/{len(chosen)}, {(time.monotonic() - start) / 60:.1f} min] ", end="", flush=True)
            peers = [n for n in asked if n in OF_PART[job.part]]
            with torch.no_grad():
                results.append(measure(job, peers, 2 if args.dry_run else args.rounds, device))
            print("\n".join(describe(results[-1])), flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    finally:
        caches.cleanup()
    wrong = [
        f"{r['case']} by {n}: {why}"
        for r in results
        for n, why in r["skipped"].items()
        if why.startswith("WRONG")
    ]
    print(f"\nfigures: {path}", *(f"WRONG RESULT {w}" for w in wrong), sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
