"""What the compiler did, while it does it: every stage on disk, every decision in the log.

    TORCH_COMPILE_DEBUG=1         each graph's stages, in order, under torch_compile_debug/run_*/torchroller/
    TORCH_LOGS="+torchroller"     each decision, as it is made (without the +: one line per graph)

Both are PyTorch's own switches: the folder is the one that Dynamo and Inductor write to, TORCH_COMPILE_DEBUG_DIR moves
it, and PyTorch gives the logger `torchroller` its handler because `torchroller` is a module. `stage` and `decisions`
cost nothing where nobody asked.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from torch import fx

from torchroller.cost import time_text
from torchroller.report import user_line

log = logging.getLogger("torchroller")

STAGES = (
    "graph",
    "lowered",
    "fused",
    "expressions",
    "ranked",
    "triton",
    "plan",
)  # in the order of the compiler
_REASONS = 3  # rejected tiles in the log, per kernel; the dump and the report have all of them

_folder: ContextVar[Path | None] = ContextVar("torchroller_debug_folder", default=None)
_lock = threading.Lock()


def dumping() -> bool:
    return os.environ.get("TORCH_COMPILE_DEBUG", "0") == "1"


@contextlib.contextmanager
def graph(gm: fx.GraphModule) -> Iterator[None]:
    """Within it `stage` writes to a folder of this graph's own, which begins with the graph; nothing unless asked."""
    token = _folder.set(_fresh_folder() if dumping() else None)
    try:
        stage("graph", lambda: graph_text(gm))
        yield
    finally:
        _folder.reset(token)


def _fresh_folder() -> Path | None:
    from torch._dynamo.utils import get_debug_dir

    with _lock:  # two threads may compile at a time
        root = Path(get_debug_dir()) / "torchroller"
        try:
            root.mkdir(parents=True, exist_ok=True)
            at = root / f"graph_{len(list(root.iterdir()))}"
            at.mkdir()
        except OSError as error:
            log.warning("torchroller: TORCH_COMPILE_DEBUG writes nothing, %s: %s", root, error)
            return None
    log.warning("torchroller: writing the stages of a graph to %s", at)
    return at


def stage(name: str, text: Callable[[], str | Mapping[str, str]]) -> None:
    """Writes one stage: a file, or a folder where `text` gives several by name. `text` is called only if asked."""
    at = _folder.get()
    if at is None:
        return
    number = STAGES.index(name)
    try:
        made = text()
        if isinstance(made, str):
            (at / f"{number}_{name}.txt").write_text(made + "\n", encoding="utf-8")
            return
        inside = at / f"{number}_{name}"
        inside.mkdir(exist_ok=True)
        for file, content in made.items():
            (inside / file).write_text(content + "\n", encoding="utf-8")
    except Exception as error:  # a dump that fails must not make the compilation fail
        log.warning("torchroller: stage %r was not written: %s: %s", name, type(error).__name__, error)


def graph_text(gm: fx.GraphModule) -> str:
    """The ATen graph, node by node, with shapes, and the user's line above the first node that it made."""
    lines, shown = [], ""
    for node in gm.graph.nodes:
        where = user_line(node.stack_trace) if node.stack_trace else ""
        if where and where != shown:
            lines.append(f"# {where}")
            shown = where
        made = _meta_text(node.meta.get("val"))
        lines.append(f"{node.format_node()}{f'  -> {made}' if made else ''}")
    return "\n".join(lines)


def _meta_text(meta: Any) -> str:
    if isinstance(meta, (tuple, list)):
        return ", ".join(_meta_text(m) or "-" for m in meta)
    if hasattr(meta, "shape") and hasattr(meta, "dtype"):
        return f"{str(meta.dtype).removeprefix('torch.')}{list(meta.shape)}"
    return ""


def expressions_text(kernels: Iterable[Any]) -> str:
    """`build.Kernel`s in order of execution, each with the buffers that its tensors are bound to."""
    parts = []
    for number, kernel in enumerate(kernels):
        bound = ", ".join(f"t{i}={name}" for i, name in enumerate(kernel.buffers))
        parts.append(f"# kernel {number}: {bound}\n{kernel.expr}")
    return "\n\n".join(parts)


def ranked_text(launches: Iterable[Any]) -> dict[str, str]:
    """Per kernel: every ranked rProgram, the chosen one marked, measured times, every rejected tile with its reason."""
    found: dict[str, str] = {}
    for launch in _distinct(launches):
        name = f"{len(found):03d}_{launch.kernel.source.name}.txt"
        construction = launch.construction
        if construction is None:
            found[name] = "tiles: a plain choice, nothing was searched"
            continue
        lines = [str(construction), ""]
        for rank, program in enumerate(construction.ranked):
            mark = "  <- chosen" if rank == launch.chosen else ""
            measured = ""
            if launch.measured_s is not None and rank < len(launch.measured_s):
                measured = f"  measured {time_text(launch.measured_s[rank])}"
            lines += [f"# rank {rank + 1}: {program.key}{measured}{mark}", str(program), ""]
        lines += [f"rejected {tile}: {why}" for tile, why in construction.rejected]
        found[name] = "\n".join(lines)
    return found


def triton_text(launches: Iterable[Any]) -> dict[str, str]:
    """Per kernel: its Triton source, as it was compiled."""
    return {
        f"{number:03d}_{launch.kernel.source.name}.py": launch.kernel.source.text
        for number, launch in enumerate(_distinct(launches))
    }


def _distinct(launches: Iterable[Any]) -> list[Any]:
    found: dict[str, Any] = {}
    for launch in launches:
        found.setdefault(launch.kernel.source.text, launch)
    return list(found.values())


def decisions(plan: Any, lowered: Any) -> None:
    """Logs what was decided about one graph: one line at INFO, every kernel and extern call at DEBUG."""
    if not log.isEnabledFor(logging.INFO):
        return
    counts: dict[str, int] = {}
    for launch in plan.launches:
        counts[launch.kernel.source.text] = counts.get(launch.kernel.source.text, 0) + 1
    log.info(
        "%d launches of %d kernels, %d extern calls; %d of %d nodes lowered; arena %d bytes, %d packed weights",
        len(plan.launches),
        len(counts),
        len(plan.externs),
        lowered.lowered_nodes,
        lowered.total_nodes,
        plan.arena_bytes,
        len(plan.packed),
    )
    if not log.isEnabledFor(logging.DEBUG):
        return
    for launch in _distinct(plan.launches):
        source = launch.kernel.source
        log.debug(
            "%s x %d: from %s", source.name, counts[source.text], ", ".join(launch.expr.source) or "nothing"
        )
        log.debug("  %s", _chosen_text(launch))
        construction = launch.construction
        for tile, why in (construction.rejected if construction is not None else ())[:_REASONS]:
            log.debug("  rejected %s: %s", tile, why)
        more = max(0, len(construction.rejected) - _REASONS) if construction is not None else 0
        if more:
            log.debug("  and %d more rejected tiles", more)
    for weight in plan.packed:
        log.debug("%s: packed in tiles of %d columns when first used", weight.source, weight.pack.block)
    for call in plan.externs:
        log.debug("extern %s (%s): %s", call.target, call.name, call.reason)


def _chosen_text(launch: Any) -> str:
    construction = launch.construction
    cached = ", from the disk cache" if launch.kernel.cached else ""
    if construction is None or launch.chosen >= len(construction.ranked):
        return f"tiles: a plain choice, nothing was searched{cached}"
    program = construction.ranked[launch.chosen]
    estimate = program.estimate
    text = (
        f"tile {program.key}, {program.grid} programs, predicted {time_text(estimate.time_s)}, bound by "
        f"{estimate.bound_by}; rank {launch.chosen + 1} of {len(construction.ranked)}, {construction.visited} visited"
    )
    if launch.measured_s is not None:
        text += f"; measured {time_text(launch.measured_s[launch.chosen])}"
    return text + cached
