"""Random kernels, compiled and interpreted: two executors that share nothing but the language must agree."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from oracle import Interpreter, module_of, needs_backend, ramp

pytestmark = needs_backend

SIDES = [1, 2, 4, 16, 32]
ACCESSES = {
    "rows": "i * 64 + j", "columns": "j * 64 + i", "steps": "i * 64 + j * 2", "one row": "j + i * 0",
    "one column": "i * 64 + j * 0", "backwards": "(31 - i) * 64 + 63 - j", "wrapping": "i * 64 + (j + 5) % n",
    "divided": "(j // 3) * 64 + i + j % 3", "shifted": "(i << 6) + (j ^ 1)", "indirect": "tl.load(z + i * 64 + j) + 50",
}  # fmt: skip
MASKS = [
    "",
    "(i < m) & (j < n)",
    "j < n",
    "i < m",
    "(i + j < n) & (j != 3)",
    "tl.load(z + i * 64 + j) > 0",
    "flag > 0",
]
FLOATS = [
    "{a} + {b}", "{a} - {b} * 0.5", "{a} * tl.exp(-tl.abs({b}))", "tl.maximum({a}, {b})", "tl.minimum({a}, -{b})",
    "tl.where({p} > 0, {a}, {b})", "tl.where(i < j, {a}, {b} + 1)", "tl.sqrt(tl.abs({a}))", "{a} + {p}",
    "{a}.to(tl.float16).to(tl.float32)", "{a} - tl.max({a}, 1)[:, None]", "{a} + tl.sum({b}, 0)[None, :] * 0.125",
    "tl.cumsum({a}, 1) * 0.25", "{a} + tl.argmin({p}, 0)[None, :]", "{a} / (tl.abs({b}) + 1.0)",
    "tl.sum({a}) * 0.01 + {b}", "tl.reshape(tl.reshape({a}, (M * N,)), (M, N)) - {b}", "{a} * (flag + m)",
]  # fmt: skip
INTEGERS = [
    "{p} + {q}", "{p} * {q} - i", "{p} & ({q} | j)", "{p} ^ {q}", "{p} // ({q} | 1)", "{p} % (({q} & 7) + 1)",
    "tl.where({a} > {b0}, {p}, {q})", "{p} << (j & 3)", "{p} >> 2", "tl.maximum({p}, {q})",
    "{p} + tl.max({q}, 0)[None, :]",
    "tl.cumsum({p}, 0)", "({p} > {q}).to(tl.int32)", "{p} + tl.xor_sum({q}, 1)[:, None]", "{p} * 65537 + {q} * 257",
]  # fmt: skip
SQUARE = ["tl.trans({a}) + {b}", "tl.dot({a}, {b}) * 0.03", "tl.dot({a}, tl.trans({b}), {a}) * 0.03"]
BLOCKS = [
    "for k in range(flag + 2):\n        {t} = {t} * 0.5 + {b} * k",
    "for k in range(3):\n        {t}, {s} = {s}, {t} * 0.5",
    "if flag > 0:\n        {t} = {t} + 1\n    else:\n        {t} = {b} - {t}",
    "tl.store(o + i * N + j, {t})\n    {t} = {b} + tl.load(o + i * N + j)",
    "tl.store(x + i * 64 + j, {t})",
]


@st.composite
def kernels(draw: st.DrawFn) -> tuple[str, int, int, int, int, int]:
    """(source of a kernel, M, N, m, n, flag)."""
    rows, cols = draw(st.sampled_from(SIDES)), draw(st.sampled_from(SIDES))
    floats, integers, lines = [], [], []
    for k, pointer in enumerate("xyxz"):
        access, mask = draw(st.sampled_from(sorted(ACCESSES))), draw(st.sampled_from(MASKS))
        other = draw(st.sampled_from(["0", "2"]))
        tail = f", mask=({mask}) & (i + j >= 0), other={other}" if mask else ""
        name = f"{'p' if pointer == 'z' else 'f'}{k}"
        lines.append(f"{name} = tl.load({pointer} + {ACCESSES[access]}{tail})")
        (integers if pointer == "z" else floats).append(name)
    first = list(floats)
    for k in range(draw(st.integers(2, 6))):
        pick = {n: draw(st.sampled_from(floats)) for n in "abst"}
        pick |= {n: draw(st.sampled_from(integers)) for n in "pq"} | {"b0": first[-1]}
        kind = draw(st.integers(0, 5))
        if kind <= 1:
            pick["a"] = first[0]  # comparisons see only numbers that both executors hold exactly
            lines.append(f"p{k + 10} = {draw(st.sampled_from(INTEGERS)).format(**pick)}")
            integers.append(f"p{k + 10}")
        elif kind == 5 and lines:
            target = draw(st.sampled_from(floats[len(first) :] or ["copy"]))
            if target == "copy":
                lines.append(f"copy = {pick['a']} + 0.5")
                floats.append("copy")
            pick["t"], pick["s"] = target, f"{target}s"
            lines.append(f"{target}s = {pick['b']} - 0.5")
            lines.append(draw(st.sampled_from(BLOCKS)).format(**pick))
        else:
            choices = FLOATS + (SQUARE if rows == cols else [])
            lines.append(f"f{k + 10} = {draw(st.sampled_from(choices)).format(**pick)}")
            floats.append(f"f{k + 10}")
    mask = draw(st.sampled_from(MASKS))
    tail = f", mask=({mask}) & (i + j >= 0)" if mask else ""
    order = draw(st.sampled_from(["i * N + j", "j * M + i"]))
    lines.append(f"tl.store(o + M * N + {order}, {floats[-1]} + tl.zeros((M, N), tl.float32){tail})")
    lines.append(f"tl.store(r + {order}, {integers[-1]} + tl.zeros((M, N), tl.int32){tail})")
    header = "@triton.jit\ndef kernel(x, y, z, o, r, m, n, flag, M: tl.constexpr, N: tl.constexpr):\n"
    indices = ["i = tl.arange(0, M)[:, None]", "j = tl.arange(0, N)[None, :]"]
    source = header + "".join(f"    {line}\n" for line in [*indices, *lines])
    return (
        source,
        rows,
        cols,
        draw(st.integers(1, rows)),
        draw(st.integers(1, cols)),
        draw(st.integers(0, 1)),
    )


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter]:
    running = Interpreter(tmp_path_factory.mktemp("interpreter"))
    yield running
    running.close()


def agree(interpreter: Interpreter, case: tuple[str, int, int, int, int, int]) -> None:
    source, rows, cols, m, n, flag = case
    with tempfile.TemporaryDirectory() as folder:
        module = module_of(Path(folder), source)
        x, y, z = ramp(8192), ramp(8192, seed=1), ramp(8192, dtype=torch.int32, seed=2)
        o, r = torch.full((2 * rows * cols,), 9.0), torch.full((rows * cols,), 9, dtype=torch.int32)
        arguments = [x, y, z, o, r, m, n, flag]
        constants = {"M": rows, "N": cols}
        wanted = interpreter.run(module.__file__, arguments, constants)
        module.kernel[(1,)](*arguments, **constants, enable_fp_fusion=False)
    for got, want, name in zip(arguments[:5], wanted, "xyzor"):
        torch.testing.assert_close(
            got,
            want,
            rtol=3e-3,
            atol=3e-3,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}\n{source}",
        )


COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}


@settings(max_examples=8, **COMMON)
@given(kernels())
def test_random_kernels(interpreter: Interpreter, case: tuple[str, int, int, int, int, int]) -> None:
    agree(interpreter, case)


@pytest.mark.slow
@settings(max_examples=300, **COMMON)
@given(kernels())
def test_many_random_kernels(interpreter: Interpreter, case: tuple[str, int, int, int, int, int]) -> None:
    agree(interpreter, case)
