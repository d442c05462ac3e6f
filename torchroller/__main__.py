"""`python -m torchroller`: look at devices, explain a model, time an operator, manage the cache.

python -m torchroller devices [NAME …] [--calibrate]
python -m torchroller explain bert | gpt2 | vit | llama | SCRIPT.py [--html FILE] [--json] [--measure]
python -m torchroller bench M3 [--scale 64]         an operator of the ROLLER evaluation
python -m torchroller bench --list
python -m torchroller cache [--clear]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchroller.host import Calibration


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the return value is the exit status."""
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"torchroller {args.command}: {error}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m torchroller", description="torchroller from the shell")
    commands = parser.add_subparsers(dest="command", required=True)

    devices = commands.add_parser("devices", help="what the search knows about this CPU and the shipped GPUs")
    devices.add_argument(
        "names",
        nargs="*",
        help="cpu, V100, A100, H100, H200, B200, MI250X, MI300X, or a CPU such as znver5 (default: cpu and all GPUs)",
    )
    devices.add_argument(
        "--calibrate",
        "--measure",
        action="store_true",
        help="time this CPU for ten seconds and keep the result, which the search uses from then on",
    )
    devices.set_defaults(run=_devices)

    explain = commands.add_parser("explain", help="compile a model and say what was decided, and why")
    explain.add_argument(
        "model", help="a built-in model name, or a Python file that defines model and inputs"
    )
    explain.add_argument("--html", metavar="FILE", help="write one self-contained page")
    explain.add_argument("--json", action="store_true", help="print JSON instead of text")
    explain.add_argument("--measure", action="store_true", help="also time the compiled and the eager model")
    explain.add_argument("--batch", type=int, default=1)
    explain.add_argument("--tokens", type=int, default=128, help="sequence length of language models")
    explain.add_argument("--layers", type=int, help="fewer layers than the model's configuration has")
    explain.add_argument("--mode", choices=["default", "max-autotune"], default="default")
    explain.set_defaults(run=_explain)

    bench = commands.add_parser("bench", help="predict and time one operator of the ROLLER evaluation")
    bench.add_argument(
        "operator", nargs="?", help="its name in the paper: C0-C43, D0-D22, E0-E27, P0-P12, R0-R3, M0-M6"
    )
    bench.add_argument("--list", action="store_true", help="list the operators")
    bench.add_argument(
        "--scale", type=int, help="divide batch or rows by this (default: 64 on a CPU, 1 elsewhere)"
    )
    bench.add_argument(
        "--device", default="cpu", help="predict for this device; others than cpu are not timed"
    )
    bench.set_defaults(run=_bench)

    cache = commands.add_parser("cache", help="show or clear the kernels kept on disk")
    cache.add_argument("--clear", action="store_true")
    cache.set_defaults(run=_cache)
    return parser


def _devices(args: argparse.Namespace) -> int:
    from torchroller import calibrate, device, host

    if args.calibrate:
        found = calibrate.measure()
        path = host.save_calibration(found)
        device.cpu.cache_clear()
        print(f"{_calibration_text(found)}\nkept in {path}\n")
    names = args.names or ["cpu", *(d.name for d in device.SHIPPED)]
    print("\n\n".join(str(device.by_name(n)) for n in names))
    return 0


def _calibration_text(found: Calibration) -> str:
    from torchroller.cost import time_text
    from torchroller.spec import rate_text

    peaks = {
        "fp32": found.fma_flops_per_core,
        "bf16": found.bf16_flops_per_core,
        "int8": found.int8_flops_per_core,
    }
    lines = [
        "measured, one core: " + ", ".join(f"{n} {rate_text(p)[:-1]}FLOP/s" for n, p in peaks.items() if p)
    ]
    lines += [f"  {n:<5} reads {rate_text(r)}/s, copies {rate_text(c)}/s" for n, r, c in found.levels]
    lines.append(
        f"{found.cores} cores: DRAM reads {rate_text(found.dram_read_bytes_per_s)}/s, "
        f"copies {rate_text(found.dram_bytes_per_s)}/s; launch {time_text(found.launch_s)}, "
        f"waking the other threads {time_text(found.fork_s)}"
    )
    return "\n".join(lines)


def _explain(args: argparse.Namespace) -> int:
    from torchroller import explaining, models

    found = models.load(args.model, batch=args.batch, tokens=args.tokens, layers=args.layers)
    import torch

    mode = None if args.mode == "default" else args.mode
    with torch.inference_mode(found.inference):
        made = explaining.explain(
            found.model, *found.inputs, measure=args.measure, mode=mode, name=found.name
        )
    print(json.dumps(made.to_dict(), indent=1) if args.json else made)
    if args.html:
        print(f"\npage: {made.save(Path(args.html).with_suffix('.html')).resolve()}", file=sys.stderr)
    return 0


def _bench(args: argparse.Namespace) -> int:
    from torchroller import device, operators
    from torchroller.search import construct

    listed = operators.read()
    if args.list or not args.operator:
        print("\n".join(map(str, listed)))
        return 0
    named = [o for o in listed if o.id == args.operator.upper()]
    if not named:
        raise ValueError(f"no operator {args.operator!r}; `bench --list` names all {len(listed)}")
    spec = device.by_name(args.device)
    if spec.is_cpu:
        import torch

        spec = device.cpu(torch.get_num_threads())  # what the plan will run on
    operator = named[0].scaled(args.scale or (64 if spec.is_cpu else 1))
    found = construct(operator.expr(), spec, tiled=operator.tiled)
    print(f"{operator}\n\n{found.best}\n\n{found}")
    if spec.is_cpu:
        print(_timed(operator, found.best.estimate.time_s))
    return 0


def _timed(operator: object, predicted_s: float) -> str:
    import torch

    from torchroller.backend import roller
    from torchroller.cost import time_text
    from torchroller.explaining import medians
    from torchroller.operators import Operator

    assert isinstance(operator, Operator)
    fn, inputs = operator.call()
    torch._dynamo.reset()
    compiled = torch.compile(fn, backend=roller)
    with torch.inference_mode():
        expected, got = fn(*inputs), compiled(*inputs)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
        ours, eager = medians((lambda: compiled(*inputs), lambda: fn(*inputs)))
    return (
        f"\npredicted {time_text(predicted_s)}, measured {time_text(ours)}, eager {time_text(eager)} "
        f"({eager / ours:.2f} x)"
    )


def _cache(args: argparse.Namespace) -> int:
    import shutil

    from torchroller.device import size_text
    from torchroller.host import cache_root

    root = cache_root()
    files = [f for f in root.rglob("*") if f.is_file()] if root.exists() else []
    total = sum(f.stat().st_size for f in files)
    print(f"{root}: {len(files)} files, {size_text(total)}")
    if args.clear and files:
        shutil.rmtree(root)
        print("cleared; kernels are compiled again when they are needed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
