"""The corpus: small programs, each with what detection and diagnosis should say of it.

The lines to blame for a leak carry the mark `# culprit` in the program: every program that leaks has some.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parent / "programs"


@dataclass(frozen=True)
class Case:
    """One program. It takes the seconds to run as its argument and needs nothing else."""

    name: str
    leaks: bool
    verdicts: tuple[str, ...]  # any of these is right
    classes: tuple[str, ...]  # growth classes that are right; empty where none is worth telling
    metric: str = "memory"  # what grows: memory, fds, threads, dev_shm_bytes
    needs: str | None = None  # import name of an optional package
    source: str = ""  # report that it is modelled on
    alone: bool = False  # moves a counter of the whole machine

    @property
    def path(self) -> Path:
        return PROGRAMS / f"{self.name}.py"

    @property
    def available(self) -> bool:
        return self.needs is None or find_spec(self.needs) is not None


def _leak(name: str, *classes: str, **more) -> Case:  # noqa: ANN003
    return Case(name, True, ("leak",), classes or ("steady",), **more)


def _fine(name: str, *classes: str, verdicts: tuple[str, ...] = ("bounded",), **more) -> Case:  # noqa: ANN003
    return Case(name, False, verdicts, classes, **more)


CASES: tuple[Case, ...] = (
    _leak("list_growth", source="vllm PR #44490"),
    _leak("closure_callbacks", source="pytorch #46386, without torch"),
    _leak("native_malloc", source="a C library without free"),
    _leak("native_patterns", source="a handle of a C library that is not freed"),
    _leak("method_cache", "stair", "steady", source="transformers #45412"),
    _leak("label_cardinality", source="prometheus client_python #937"),
    _leak("logging_handlers", source="logger.addHandler in a request"),
    _leak("generated_functions", source="pytorch #188127, without torch"),
    _leak("leaking_child", source="wandb #12910"),
    _leak("shared_memory", "steady", "stair", metric="dev_shm_bytes", alone=True, source="pytorch #17499"),
    _leak("descriptors", metric="fds", source="connections kept open"),
    _leak("threads_kept", "steady", "stair", metric="threads", source="threads that never end"),
    _leak("jit_records", "stair", "steady", source="pytorch #46380, without torch"),
    _leak("collective_calls", source="nccl #1534, without collectives"),
    _leak("log_reload", source="tensorboard #766"),
    _leak(
        "helper_processes",
        "steady",
        "stair",
        metric="children",
        source="olmoearth_pretrain PR #563",
    ),
    _leak("asyncio_tasks", source="tasks that wait for ever, kept in a set"),
    _leak("sqlite_journal", source="a table in memory without retention"),
    _leak("figure_registry", source="matplotlib's pyplot figures that are not closed"),
    _leak("undrained_queue", source="a multiprocessing queue whose reader has ended"),
    _leak("flushed_batches", "steady", "stair", source="a leak under batches that are written out"),
    _leak("torch_history", needs="torch", source="wandb #354"),
    _leak("torch_hook", needs="torch", source="pytorch #46386"),
    _leak("torch_create_graph", needs="torch", source="pytorch #7343"),
    _leak("torch_recompiles", needs="torch", source="pytorch #112090, #116096"),
    _fine("flat_trainer", "flat"),
    _fine("lru_plateau", "plateau", source="bounded cache"),
    _fine("warm_up", "plateau", source="pytorch/serve #1528"),
    _fine("prefetch_queue", "plateau", source="pytorch #62066"),
    _fine(
        "arena_pow2",
        "plateau",
        "spike",
        "stair",
        "flat",
        verdicts=("bounded", "unclear"),  # how long until the next doubling, nobody knows
        source="onnxruntime #11118",
    ),
    _fine("saw_tooth", "saw-tooth", "flat", source="collector in steps"),
    _fine("bounded_deque", "plateau", source="a window of the last records"),
    _fine("async_server", "flat", "plateau", "spike", source="tasks that end, under a semaphore"),
    _fine("request_spikes", "spike", "flat", source="pytorch/serve #415"),
    _fine("mapped_file", source="pytorch #102334"),
    _fine("copy_on_write", verdicts=("bounded", "unclear"), source="pytorch #13246"),
    _fine("lru_by_count", "plateau", "sublinear", source="vllm #12973"),
    _fine("pinned_pool", "plateau", source="pytorch #97432"),
    _fine("page_cache", "flat", "plateau", source="kubernetes #43916"),
    _fine("onnx_shapes", "plateau", "flat", "spike", needs="onnxruntime", source="onnxruntime #5796"),
    _fine("arrow_reads", "plateau", "flat", "spike", needs="pyarrow", source="arrow #47266"),
    _fine("frame_buffers", verdicts=("bounded", "retention"), source="xiaomi-miloco PR #459"),
    Case("fragmentation", False, ("retention",), (), source="ray #53261"),
    _fine("torch_trainer", "flat", "plateau", needs="torch"),
)


def by_name(name: str) -> Case:
    """The case of this name; KeyError names those there are."""
    for case in CASES:
        if case.name == name:
            return case
    raise KeyError(f"no program is called {name!r}; there are: {', '.join(c.name for c in CASES)}")


def culprit_lines(case: Case) -> frozenset[int]:
    """Lines of the program that carry the mark `# culprit`."""
    text = case.path.read_text(encoding="utf-8").splitlines()
    return frozenset(
        number for number, line in enumerate(text, start=1) if line.rstrip().endswith("# culprit")
    )
