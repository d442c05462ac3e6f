"""Reading the target's source: the function at a line, library or user code, containers that only grow."""

from __future__ import annotations

import ast
import functools
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_ADDS = {"append", "add", "extend", "insert", "appendleft", "setdefault", "update", "register", "addHandler"}
_REMOVES = {"pop", "popleft", "popitem", "clear", "remove", "discard", "removeHandler"}
_MOST_BYTES = 4 * 1048576


@functools.lru_cache(maxsize=256)
def _tree(path: str) -> ast.Module | None:
    try:
        if Path(path).stat().st_size > _MOST_BYTES:
            return None
        return ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def function_at(path: str, line: int) -> str:
    """Name of the innermost function around the line, `<module>` outside of all, `?` without the source."""
    tree = _tree(path)
    if tree is None:
        return "?"
    name = "<module>"
    for node in ast.walk(tree):  # breadth first: inner functions come later and win
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.lineno <= line <= (
            node.end_lineno or node.lineno
        ):
            name = node.name
    return name


def is_library(path: str) -> bool:
    """Standard library, installed package or no file at all: not the code of the user."""
    if path.startswith("<"):
        return True
    parts = Path(path).parts
    if "site-packages" in parts or "dist-packages" in parts:
        return True
    if any(path.startswith(sysconfig.get_path(kind) + "/") for kind in ("stdlib", "platstdlib")):
        return True
    return any(part.startswith("python3.") for part in parts) and "lib" in parts


@dataclass(frozen=True)
class GrowthSite:
    """A statement that adds to a container which outlives the call, in a file that never takes anything out."""

    file: str
    line: int
    function: str
    container: str


def growth_sites(paths: Iterable[str]) -> list[GrowthSite]:
    """Such statements in the given source files: a hint for where to look, not a proof."""
    return [site for path in dict.fromkeys(paths) for site in _sites(path)]


def _sites(path: str) -> list[GrowthSite]:
    tree = _tree(path)
    if tree is None:
        return []
    module_names = {
        target.id
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    adds: list[tuple[str, int]] = []
    removed: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = _lasting(node.func.value, module_names)
            if owner and node.func.attr in _ADDS:
                adds.append((owner, node.lineno))
            elif owner and node.func.attr in _REMOVES:
                removed.add(owner)
        elif isinstance(node, (ast.Assign, ast.AugAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Subscript):
                    owner = _lasting(target.value, module_names)
                    if owner:
                        adds.append((owner, node.lineno))
        elif isinstance(node, ast.Delete):
            for target in node.targets:
                if isinstance(target, ast.Subscript):
                    removed.add(_lasting(target.value, module_names) or "")
    found = []
    for owner, line in adds:
        function = function_at(path, line)
        if owner not in removed and function != "<module>":  # module level code runs once
            found.append(GrowthSite(path, line, function, owner))
    return found


def _lasting(node: ast.expr, module_names: set[str]) -> str | None:
    """Name of a container that outlives the call: a module variable or an attribute; None for locals."""
    if isinstance(node, ast.Name):
        return node.id if node.id in module_names else None
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return None
