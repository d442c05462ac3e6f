"""`torchroller.reproducer(path)`: one runnable script per kernel of what was compiled last.

A script stands alone: it holds the kernel's Triton text, makes its inputs, launches it with stock Triton and compares
with ATen (or, where a kernel has no ATen counterpart, with Triton's interpreter). It is what to send with a bug report,
and where to edit a kernel by hand. `python 000_name.py` exits with 1 where the results differ; `--time` times it.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchroller.emit.common import Pack
from torchroller.expr import ITEMSIZE, TensorExpr
from torchroller.plan import ExecutionPlan, Launch
from torchroller.reference import Reference, reads, references

_POSITIVE = {
    "log",
    "log2",
    "log10",
    "log1p",
    "sqrt",
    "rsqrt",
    "pow",
    "reciprocal",
    "div",
    "lgamma",
}  # of these
_HALF = ("float16", "bfloat16")


def reproducer(path: str | Path, plans: Sequence[Any] | None = None) -> list[Path]:
    """Writes a script per distinct kernel into the folder `path`; returns the scripts, in order of execution.

    plans: execution plans; default: what backend "roller" compiled most recently (the last 64 graphs)
    Raises ValueError when there is no kernel to write.
    """
    from torchroller import backend

    chosen = list(backend.last_plans() if plans is None else plans)
    folder = Path(path)
    seen: set[str] = set()
    scripts: list[tuple[str, str]] = []
    for plan in chosen:
        if not isinstance(plan, ExecutionPlan):
            continue
        for launch, reference in zip(plan.launches, _references(plan)):
            source = launch.kernel.source
            if source.text in seen:
                continue
            seen.add(source.text)
            scripts.append((f"{len(scripts):03d}_{source.name}.py", script(launch, reference, plan)))
    if not scripts:
        raise ValueError(
            "no kernels to reproduce: compile and call a model with torch.compile(backend='roller') first; "
            f"{len(chosen)} plans are known, none with a kernel of ours (torchroller.last_report() says why)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in scripts:
        (folder / name).write_text(text, encoding="utf-8")
        written.append(folder / name)
    return written


def _references(plan: ExecutionPlan) -> list[Reference]:
    """One per launch; those whose kernel is not found again have none."""
    from torchroller import backend

    known = backend.graph_of(plan)
    if known is None:
        return [Reference(missing="the graph of this plan is not kept")] * len(plan.launches)
    try:
        made = references(*known)
    except Exception as error:
        return [Reference(missing=f"the graph does not lower again: {type(error).__name__}: {error}")] * len(
            plan.launches
        )
    again = [_anonymous(kernel.expr) for kernel, _ in made]
    here = [_anonymous(launch.expr) for launch in plan.launches]
    if again == here:
        return [reference for _, reference in made]
    by_expr = dict(zip(again, (reference for _, reference in made)))
    lost = Reference(missing="its place in the graph is not known: a neighbour fell back to ATen")
    return [by_expr.get(expr, lost) for expr in here]


def _anonymous(expr: TensorExpr) -> TensorExpr:
    return replace(expr, name="", source=())


def script(launch: Launch, reference: Reference, plan: ExecutionPlan) -> str:
    """The text of one script."""
    source, expr = launch.kernel.source, launch.expr
    packs = {p.tensor: p for p in source.packs}
    written = {w.access.tensor for w in expr.writes}
    bound = _index_bound(expr)
    positive = any(v.fn in _POSITIVE for v in expr.values if v.fn)
    names = [f"t{i}" for i in range(len(source.signature) - source.flags)]
    made = []
    for name in names:
        elements, dtype = _needs(expr, name, packs.get(name))
        made.append(
            f"    {name} = tensor({elements}, torch.{dtype}, {name in written and 'None' or bound}, {positive})"
        )
    given = [f"packed({n}, {_pack_text(packs[n])})" if n in packs else f"storable({n})" for n in names]
    if source.flags:
        given.append("torch.zeros(1, dtype=torch.int32, device=DEVICE)")
    half = any(a.dtype in _HALF for a in reads(expr))
    deep = any(v.kind in ("dot", "reduce") for v in expr.values)
    tolerance = 3e-2 if half else 1e-4 if deep else 1e-5
    outputs = ", ".join(f"{n!r}: {n}" for n in names if n in written)
    origin = ", ".join(expr.source) or "no operator of the graph"
    where = f"of: {origin}"
    compare = _compare(reference)
    device = "cuda" if plan.device.type == "cuda" else "cpu"
    return _TEMPLATE.format(
        title=f"{source.name}: kernel {where}",
        expression=textwrap.indent(str(expr), "    "),
        device=device,
        kernel=_kernel_text(source.text),
        tensors="\n".join(made),
        names=", ".join(names) + ("," if len(names) == 1 else ""),
        given=",\n        ".join(given),
        name=source.name,
        grid=source.grid,
        launch=f"num_warps={source.num_warps}, num_stages={source.num_stages}",
        outputs=outputs,
        tolerance=tolerance,
        compare=compare,
    )


def _kernel_text(text: str) -> str:
    """The module without its imports, which the script has at its top."""
    lines = [
        line for line in text.splitlines() if line not in ("import triton", "import triton.language as tl")
    ]
    return "\n".join(lines).strip("\n")


def _compare(reference: Reference) -> str:
    if reference.missing:
        return (
            f"    # No ATen reference: {reference.missing}.\n"
            "    # Triton's interpreter runs the same text with NumPy instead.\n"
            "    return interpreted()"
        )
    lines = [f"    {line}" for line in reference.lines]
    pairs = ", ".join(f"({name}, {view})" for name, view in reference.results)
    return "\n".join([*lines, f"    return [{pairs}]"])


def _needs(expr: TensorExpr, name: str, pack: Pack | None) -> tuple[int, str]:
    """Elements that the kernel reaches in one tensor, and its dtype; of a packed one, as it is before packing."""
    if pack is not None:
        reach = pack.offset + 1 + (pack.k - 1) * pack.k_stride
        return reach + sum((n - 1) * s for n, s in zip(pack.n_shape, pack.n_strides)), pack.dtype
    elements, dtype = 1, "float32"
    for access in reads(expr):
        if access.tensor == name:
            span = sum(max(st, 0) * (size - 1) for st, size in zip(access.strides, access.shape))
            elements, dtype = max(elements, access.offset + 1 + span), access.dtype
    assert dtype in ITEMSIZE
    return elements, dtype


def _index_bound(expr: TensorExpr) -> int:
    """Integers below this are valid wherever the kernel reads at positions that are data."""
    sizes = [size for a in reads(expr) for size, at in zip(a.shape, a.index) if at.indirect is not None]
    return min(sizes, default=8)


def _pack_text(pack: Pack) -> str:
    return json.dumps(
        {
            "k": pack.k, "k_stride": pack.k_stride, "n_shape": list(pack.n_shape),
            "n_strides": list(pack.n_strides), "offset": pack.offset, "block": pack.block, "tiles": pack.tiles,
            "depth": pack.depth or pack.k, "pairs": pack.pairs,
        }
    )  # fmt: skip


_TEMPLATE = '''"""{title}

{expression}

Written by torchroller.reproducer. Run it: it compares the kernel with a reference and exits with 1 where they differ.
`--time` also times the kernel.
"""

import os
import subprocess
import sys
import tempfile

DEVICE = "{device}"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_DEFAULT_BACKEND", "cpu")  # torchroller's Triton backend, also beside a GPU

import torch
import triton
import triton.language as tl

TOLERANCE = {tolerance}  # of the largest error, relative to the largest magnitude of the reference


{kernel}


def tensor(elements, dtype, bound, positive):
    """Flat data; `bound` is None for what the kernel writes, which starts as zeros."""
    if bound is None:
        return torch.zeros(elements, dtype=dtype, device=DEVICE)
    if dtype == torch.bool:
        return torch.randint(0, 2, (elements,), dtype=dtype).to(DEVICE)
    if not dtype.is_floating_point:
        return torch.randint(0, min(bound, 127), (elements,), dtype=dtype).to(DEVICE)
    made = torch.rand(elements) + 0.5 if positive else torch.randn(elements)
    return made.to(dtype).to(DEVICE)


def storable(flat):
    """Triton gets bool as bytes."""
    return flat.view(torch.int8) if flat.dtype == torch.bool else flat


def packed(flat, layout):
    """A constant matrix as the kernel reads it: [tile of columns][rows][column of the tile][row], padded with zeros."""
    *outer, last = layout["n_shape"]
    strides = (*layout["n_strides"][:-1], layout["k_stride"], layout["n_strides"][-1])
    rows = torch.as_strided(flat, (*outer, layout["k"], last), strides, layout["offset"])
    tiles, block, depth, pairs = (layout[name] for name in ("tiles", "block", "depth", "pairs"))
    rows = torch.nn.functional.pad(rows, (0, tiles * block - last, 0, depth - layout["k"]))
    return rows.reshape(-1, depth // pairs, pairs, tiles, block).permute(0, 3, 1, 4, 2).contiguous()


def make():
    torch.manual_seed(0)
{tensors}
    return {names}


def run(tensors):
    {names} = tensors
    given = (
        {given},
    )
    {name}[({grid},)](*given, {launch})
    return given


def written(tensors):
    {names} = tensors
    return {{{outputs}}}


def interpreted():
    """The same text under Triton's interpreter, in a process of its own."""
    tensors = make()
    run(tensors)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "out.pt")
        environment = dict(os.environ, TRITON_INTERPRET="1")
        subprocess.run([sys.executable, os.path.abspath(__file__), "--save", path], env=environment, check=True)
        want = torch.load(path)
    return [(want[name], got.cpu()) for name, got in written(tensors).items()]


def reference(tensors):
    """Pairs of what should be there and what the kernel wrote."""
    {names} = tensors
{compare}


def main():
    tensors = make()
    if "--save" in sys.argv:
        run(tensors)
        torch.save({{name: t.cpu() for name, t in written(tensors).items()}}, sys.argv[sys.argv.index("--save") + 1])
        return 0
    given = run(tensors)
    worst = 0.0
    for want, got in reference(tensors):
        want, got = want.double(), got.double()
        same_kind = torch.equal(torch.isfinite(want), torch.isfinite(got))
        known = torch.isfinite(want) & torch.isfinite(got)
        scale = want[known].abs().max().item() if known.any() else 1.0
        error = (want - got)[known].abs().max().item() / max(scale, 1e-30) if known.any() else 0.0
        worst = max(worst, error if same_kind else float("inf"))
    print(f"{name}: largest error {{worst:.2e}} of the largest magnitude, allowed {{TOLERANCE:.0e}}")
    if "--time" in sys.argv:
        launch = lambda: {name}[({grid},)](*given, {launch})
        print(f"{{1e3 * triton.testing.do_bench(launch):.1f}} us")
    return int(not worst <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
'''
