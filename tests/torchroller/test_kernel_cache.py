"""What a kernel's place in the disk cache depends on, what is refused there, and that nothing is compiled twice."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from roller_helpers import last_plan

from torchroller import choose, kernel, store
from torchroller.backend import roller
from torchroller.device import DeviceSpec
from torchroller.pipeline import device_spec


def program(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two equal reductions: one kernel."""
    return x.softmax(-1), y.softmax(-1)


INPUTS = (torch.arange(28.0).reshape(4, 7), torch.arange(28.0, 56.0).reshape(4, 7))


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that has compiled nothing and an empty cache; gives what a compilation compiles, by name."""
    built: list[str] = []
    real = kernel.NativeExecutor.compile
    monkeypatch.setenv("TORCHROLLER_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(
        kernel.NativeExecutor, "compile", lambda self, s: (built.append(s.name), real(self, s))[1]
    )
    monkeypatch.setattr(kernel, "_compiled", {})

    def run() -> list[str]:
        built.clear()
        torch._dynamo.reset()
        with torch.no_grad():
            got = torch.compile(program, backend=roller)(*INPUTS)
        torch.testing.assert_close(got, program(*INPUTS))
        assert not last_plan().externs
        return list(built)

    run.directory = tmp_path  # type: ignore[attr-defined]
    return run


def forget(monkeypatch) -> None:
    """As in a new process: only the disk knows the kernels."""
    monkeypatch.setattr(kernel, "_compiled", {})


def test_equal_kernels_are_compiled_once_per_process_and_once_per_cache(fresh, monkeypatch):
    assert len(fresh()) == 1
    assert len(last_plan().launches) == 2
    assert fresh() == []
    forget(monkeypatch)
    assert fresh() == []
    assert all(launch.kernel.cached for launch in last_plan().launches)


def test_equal_kernels_are_compiled_once_where_nothing_can_be_written(fresh, monkeypatch):
    monkeypatch.setattr(store, "write", lambda *_: None)
    assert len(fresh()) == 1
    assert fresh() == []
    assert not list(fresh.directory.rglob("*.kernel"))


def test_a_directory_that_turns_read_only_costs_the_cache_only(fresh, monkeypatch):
    kernel.cache_dir()  # found writable; remounted later, say
    real = store.tempfile.mkstemp

    def refuse(*args, **options):
        if str(options.get("dir", "")).startswith(str(fresh.directory)):
            raise PermissionError(30, "Read-only file system")
        return real(*args, **options)

    monkeypatch.setattr(store.tempfile, "mkstemp", refuse)
    assert len(fresh()) == 1
    assert fresh() == []
    assert list(fresh.directory.rglob("*.kernel")) == []


@pytest.mark.parametrize("part", range(4), ids=["target", "torch", "triton", "CPU backend"])
def test_another_environment_compiles_again(fresh, monkeypatch, part):
    assert len(fresh()) == 1
    executor = kernel.executor_for("native", torch.device("cpu"), kernel.cache_dir())
    there = list(executor.environment)
    there[part] += " of another day"
    monkeypatch.setitem(executor.__dict__, "environment", tuple(there))
    forget(monkeypatch)
    assert len(fresh()) == 1
    forget(monkeypatch)
    assert fresh() == []


def test_the_environment_names_versions_features_and_our_source():
    import llvmlite
    import triton
    from triton.backends import backends

    executor = kernel.executor_for("native", torch.device("cpu"), kernel.cache_dir())
    target, of_torch, of_triton, backend = executor.environment
    assert (of_torch, of_triton) == (torch.__version__, triton.__version__)
    assert target == str(executor.target)
    assert f"llvmlite{llvmlite.__version__}" in backend and executor.target.arch in backend
    assert backend == backends["cpu"].compiler(executor.target).hash()


def test_another_device_description_is_another_entry(fresh, monkeypatch):
    fresh()
    expr = last_plan().launches[0].expr
    spec = device_spec(torch.device("cpu"))

    executor = kernel.executor_for("native", torch.device("cpu"), kernel.cache_dir())

    def key(spec: DeviceSpec) -> str:
        options = dict(topk=1, pack=False, measure=False, check=False)
        return choose.choose(expr, spec, executor, kernel.cache_dir(), **options).key

    first = dataclasses.replace(spec.levels[0], bandwidth_bytes_per_s=1e9)
    assert key(spec) == key(dataclasses.replace(spec))
    assert key(spec) != key(dataclasses.replace(spec, levels=(first, *spec.levels[1:])))


def test_every_shortened_entry_is_absent(tmp_path):
    source = kernel.TritonSource("nothing", "def nothing(): ...\n", (), 1)
    store.write(tmp_path, "key", store.Entry(source, b"\x7fELF code", {"name": "k", "scratch_bytes": 0}))
    path = tmp_path / "key.kernel"
    whole = path.read_bytes()
    assert store.read(tmp_path, "key") is not None
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert store.read(tmp_path, "key") is None, length
    path.write_bytes(whole + b"\0")
    assert store.read(tmp_path, "key") is None


@pytest.mark.parametrize(
    "code", [b"", b"not an object file", b"\x7fELF" + bytes(60)], ids=["empty", "text", "header"]
)
def test_an_entry_whose_code_does_not_load_is_compiled_again(fresh, monkeypatch, code):
    assert len(fresh()) == 1
    (path,) = fresh.directory.rglob("*.kernel")
    entry = store.read(path.parent, path.stem)
    store.write(path.parent, path.stem, dataclasses.replace(entry, code=code))
    forget(monkeypatch)
    assert len(fresh()) == 1
    forget(monkeypatch)
    assert fresh() == []  # and replaced


def test_the_shell_counts_and_clears_the_entries(fresh, capsys):
    from torchroller.__main__ import main

    fresh()
    files = [p for p in fresh.directory.rglob("*") if p.is_file()]
    assert any(p.suffix == ".kernel" for p in files)
    assert main(["cache"]) == 0
    assert f"{len(files)} files" in capsys.readouterr().out
    assert main(["cache", "--clear"]) == 0
    assert not fresh.directory.exists()
