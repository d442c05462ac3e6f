"""`make demo`: BERT-base on this machine, compiled by torchroller, against eager PyTorch and TorchInductor.

Compile times are taken in processes of their own with empty caches (cold) and again with filled ones (warm).
For latencies each contender has a process, and they take turns: contenders that share one also share its heap and
its pool of threads, and all read slower there. A page with the reason for every tile is written to out/.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

MODELS = ("bert", "gpt2", "vit")
TURN_S = 0.3  # of calls of one contender, before it is the next one's turn


def build(name: str) -> tuple[Callable, tuple]:
    """A transformers model with random weights, from its default configuration: nothing is downloaded."""
    import torch
    import transformers as tf

    torch.manual_seed(0)
    if name == "bert":
        return tf.BertModel(tf.BertConfig()).eval(), (torch.randint(0, 30000, (1, 128)),)
    if name == "gpt2":
        return tf.GPT2Model(tf.GPT2Config(use_cache=False)).eval(), (torch.randint(0, 50000, (1, 256)),)
    return tf.ViTModel(tf.ViTConfig()).eval(), (torch.randn(1, 3, 224, 224),)


def compiled(model: Callable, contender: str) -> Callable:
    import torch

    return model if contender == "eager" else torch.compile(model, backend=contender)


def compile_once(name: str, contender: str) -> dict[str, float]:
    """Seconds from `torch.compile` to the end of the first call, in this process."""
    import torch

    model, inputs = build(name)
    with torch.no_grad():
        model(*inputs)
        start = time.perf_counter()
        compiled(model, contender)(*inputs)
        return {"seconds": time.perf_counter() - start}


def in_process(name: str, contender: str, caches: Path) -> float | None:
    """`compile_once` in a new process with the given cache directory; None where it failed."""
    done = subprocess.run(
        [sys.executable, __file__, "--model", name, "--compile", contender],
        env={**os.environ, **cache_environment(caches)},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1])["seconds"] if done.returncode == 0 and lines else None


def serve(name: str, contender: str, turn_s: float) -> None:
    """Compiles, says so, and then answers each line of stdin with the mean seconds of a call over one turn."""
    import torch

    from torchroller.timing import calls_for, time_calls

    model, inputs = build(name)
    with torch.no_grad():
        run = compiled(model, contender)
        run(*inputs)
        call = lambda: run(*inputs)  # noqa: E731
        calls = calls_for(call, turn_s)
        print("ready", flush=True)
        for _ in sys.stdin:
            print(time_calls(call, calls), flush=True)


class Contender:
    """A process that runs one contender when asked to."""

    def __init__(self, name: str, contender: str) -> None:
        command = [sys.executable, __file__, "--model", name, "--serve", contender]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            _, errors = self.process.communicate()
            raise RuntimeError(f"{' '.join(self.process.args)} ended: {errors[-2000:]}")  # type: ignore[arg-type]
        return line

    def turn(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self.answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def cache_environment(caches: Path) -> dict[str, str]:
    return {
        "TORCHROLLER_CACHE_DIR": str(caches / "torchroller"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
    }


def has_compiler() -> bool:
    """Whether TorchInductor finds the C++ compiler that it needs on a CPU."""
    return bool(os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++"))


def error_of(model: Callable, fast: Callable, inputs: tuple) -> tuple[float, float]:
    """Largest error of `fast` and of eager against double precision, relative to the largest output."""
    import copy

    first = lambda out: out.last_hidden_state  # noqa: E731
    exact = first(
        copy.deepcopy(model).double()(*(x.double() if x.is_floating_point() else x for x in inputs))
    )
    scale = exact.abs().max()
    return tuple(((first(f(*inputs)).double() - exact).abs().max() / scale).item() for f in (fast, model))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="bert")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--no-inductor", action="store_true", help="leave TorchInductor out (it takes the longest)"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.model, args.serve, TURN_S)
        return 0
    if args.compile:
        print(json.dumps(compile_once(args.model, args.compile)))
        return 0
    return show(args)


def show(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console()
    contenders = ["roller"] + ([] if args.no_inductor or not has_compiler() else ["inductor"])
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    figures: dict[str, dict[str, float | None]] = {"eager": {"cold": None, "warm": None}}
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(*columns, console=console, transient=True) as progress,
    ):
        caches = Path(folder)
        task = progress.add_task("starting", total=2 * len(contenders) + 2 + args.rounds)
        for name in contenders:
            for kind in ("cold", "warm"):
                progress.update(task, description=f"{name}: {kind} compile in a new process")
                figures.setdefault(name, {})[kind] = in_process(args.model, name, caches)
                progress.advance(task)
        os.environ.update(cache_environment(caches))
        return measured(args, console, progress, task, contenders, figures)


def measured(args, console, progress, task, contenders, figures) -> int:
    import torch

    import torchroller
    from torchroller.timing import machine

    model, inputs = build(args.model)
    with torch.no_grad():
        progress.update(task, description="building the page")
        report = torchroller.explain(model, *inputs, name=args.model)
        ours, theirs = error_of(model, compiled(model, "roller"), inputs)
        progress.advance(task)
    timings = in_turns(args, progress, task, ["eager", *contenders])
    page = Path("out") / f"{args.model}.html"
    page.parent.mkdir(exist_ok=True)
    report.save(page)
    progress.stop()
    about = machine()
    table(console, args.model, about, figures, timings)
    in_ours, flops = report.flops
    nodes, every = report.nodes
    console.print(
        f"in our kernels: [bold]{in_ours / flops:.1%}[/] of FLOPs, {nodes / every:.1%} of {every} graph nodes; "
        f"largest error against double precision {ours:.1e} (eager {theirs:.1e})"
    )
    console.print(f"why each tile was chosen: [bold]{page.resolve()}[/]")
    if args.json:
        data = {"machine": about, "model": args.model, "compile_s": figures,
                "latency": {k: t.as_dict() for k, t in timings.items()},
                "flop_share": in_ours / flops, "error": ours}  # fmt: skip
        args.json.write_text(json.dumps(data, indent=1))
    return 0


def in_turns(args, progress, task, contenders) -> dict:
    """Timings of contenders that run one at a time, each in its own process."""
    from torchroller.timing import summarise

    progress.update(task, description="compiling in a process each")
    running: dict[str, Contender] = {}
    try:
        for name in contenders:  # one after the other: compilations would slow each other down
            running[name] = Contender(args.model, name)
            running[name].answer()
        progress.advance(task)
        progress.update(task, description="taking turns")
        samples: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(args.rounds):
            for name, contender in running.items():
                samples[name].append(contender.turn())
            progress.advance(task)
    finally:
        for contender in running.values():
            contender.close()
    return {name: summarise(s) for name, s in samples.items()}


def table(console, model: str, about: dict, figures: dict, timings: dict) -> None:
    from rich.table import Table

    versions = about["versions"]
    title = f"{model} on {about['processor']}, {about['cores']} cores, torch {versions['torch']}"
    out = Table(title=title)
    for column in (
        "contender",
        "cold compile",
        "warm compile",
        "latency",
        "quartiles",
        "speed-up over eager",
    ):
        out.add_column(column, justify="left" if column == "contender" else "right")
    seconds = lambda s: "–" if s is None else f"{s:.1f} s"  # noqa: E731
    base = timings["eager"].median_s
    for name, timing in sorted(timings.items(), key=lambda item: -item[1].median_s):
        spread = f"{timing.low_s * 1e3:.1f} … {timing.high_s * 1e3:.1f} ms"
        style = "bold" if name == "roller" else None
        first, second = seconds(figures[name]["cold"]), seconds(figures[name]["warm"])
        median, ratio = f"{timing.median_s * 1e3:.1f} ms", f"{base / timing.median_s:.2f} ×"
        out.add_row(name, first, second, median, spread, ratio, style=style)
    if "inductor" not in timings:
        why = "not run" if has_compiler() else "needs a C++ compiler, which this machine has not"
        out.add_row("inductor", why, "–", "–", "–", "–")
    console.print(out)


if __name__ == "__main__":
    sys.exit(main())
