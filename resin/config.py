"""resin's knobs: one frozen dataclass, filled from a TOML file and from RESIN_* environment variables.

Order of precedence: defaults, then the file (``--config``, ``$RESIN_CONFIG`` or ``~/.config/resin.toml``),
then the environment, then what a command line says. An unknown name is refused with the closest valid one.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A knob that does not exist or holds a value of the wrong kind."""


def _state_dir() -> str:
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "resin")


@dataclass(frozen=True)
class Config:
    """Every knob of resin. Names ending in _s are seconds, in _bytes bytes."""

    # where things live
    state_dir: str = dataclasses.field(default_factory=_state_dir)
    store_path: str = ""  # DuckDB file; empty: <state_dir>/resin.duckdb
    service_url: str = "http://127.0.0.1:8790"
    token: str = ""  # bearer token; required when the service listens beyond loopback
    ca_file: str = ""  # CA that the agent trusts for https:// services; empty: the system's

    # agent
    host: str = ""  # name of this host in samples; empty: the system's host name
    tick_s: float = 10.0
    slow_tick_s: float = 60.0
    cpu_budget: float = 0.005  # share of one core; the agent stretches its ticks to stay under it
    min_process_bytes: int = 4 << 20  # processes are reported once their RSS passed this
    max_processes: int = 20_000
    buffer_max_bytes: int = 256 << 20  # samples kept on disk while the service is away
    remote_write_url: str = ""  # Prometheus remote write endpoint; replaces the resin service as target
    work_sources: tuple[str, ...] = ()  # "COMPONENT=FILE" or "COMPONENT=http://127.0.0.1:PORT/metrics#METRIC"
    allow_remote_diagnosis: bool = False  # let the service ask this agent to diagnose a process

    # service
    listen_host: str = "127.0.0.1"
    listen_port: int = 8790
    tls_cert: str = ""
    tls_key: str = ""
    allowed_hosts: tuple[str, ...] = ()  # further Host header names that the page answers to
    detect_every_s: float = 60.0
    detect_window_s: float = 24 * 3600.0
    retention_s: float = 14 * 86400.0
    store_memory_bytes: int = 1 << 30
    max_body_bytes: int = 8 << 20  # of an ingest request, after decompression
    max_label_length: int = 256
    max_entities: int = 500_000
    max_entities_per_host: int = 50_000
    prometheus_url: str = ""  # read series from this Prometheus API instead of the embedded store
    prometheus_token: str = ""  # bearer token of that API and of remote_write_url
    auto_diagnose: bool = False

    # watch
    watch_tick_s: float = 0.5

    # mitigation: nothing is applied unless its name is listed here
    mitigations: tuple[str, ...] = ()
    mitigate_cooldown_s: float = 900.0
    mitigate_max_per_hour: int = 4
    webhook_url: str = ""
    alertmanager_url: str = ""
    checkpoint_path: str = ""  # file or directory whose newest entry is the trainer's checkpoint
    checkpoint_max_age_s: float = 600.0
    checkpoint_signal: str = "SIGUSR1"
    restart_command: str = ""  # e.g. "systemctl restart trainer", "kubectl rollout restart deploy/x"
    cordon_command: str = ""
    drain_command: str = ""
    recycle_command: str = ""  # has a job replace its data-loader workers, e.g. "kill -HUP {pid}"
    audit_path: str = ""  # empty: <state_dir>/audit.jsonl

    @property
    def store_file(self) -> str:
        """Path of the DuckDB file."""
        return self.store_path or os.path.join(self.state_dir, "resin.duckdb")

    @property
    def audit_file(self) -> str:
        """Path of the audit trail of mitigations (JSON lines)."""
        return self.audit_path or os.path.join(self.state_dir, "audit.jsonl")

    @property
    def listens_beyond_loopback(self) -> bool:
        """Whether others than this machine can reach the service."""
        return not is_loopback(self.listen_host)


FIELDS: dict[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(Config)}
_POSITIVE = {
    "tick_s", "slow_tick_s", "watch_tick_s", "detect_every_s", "detect_window_s", "retention_s", "cpu_budget",
    "max_body_bytes", "max_label_length", "max_entities", "max_entities_per_host", "buffer_max_bytes",
    "max_processes", "store_memory_bytes",
}  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether `host` is a name or address of the loopback interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: 127.0.0.1.example.com is anybody's
        return False


def make_config(values: Mapping[str, Any], *, source: str = "options", base: Config | None = None) -> Config:
    """Config with `values` over `base`; raises ConfigError naming `source` for unknown names and bad values."""
    checked = {name: _checked(name, value, source) for name, value in values.items()}
    return dataclasses.replace(base or Config(), **checked)


def load_config(path: str | None = None, *, environ: Mapping[str, str] | None = None) -> Config:
    """Config from file and environment. A file that was asked for and cannot be read raises ConfigError."""
    env = os.environ if environ is None else environ
    config = Config()
    asked = path or env.get("RESIN_CONFIG")
    candidate = Path(asked) if asked else Path(os.path.expanduser("~/.config/resin.toml"))
    if asked or candidate.is_file():
        config = make_config(_read_toml(candidate), source=str(candidate), base=config)
    from_env = {
        name.removeprefix("RESIN_").lower(): value
        for name, value in env.items()
        if name.startswith("RESIN_") and name not in NOT_KNOBS
    }
    return make_config(from_env, source="environment (RESIN_*)", base=config)


# Variables with our prefix that are no knobs: the file itself, and what a watched job says about its work.
NOT_KNOBS = {
    "RESIN_CONFIG",
    "RESIN_PRELOAD_DIR",
    "RESIN_PRELOAD_DEBUG",
    "RESIN_STEPS_FILE",
    "RESIN_METRICS_URL",
    "RESIN_STEPS_METRIC",
}


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _checked(name: str, value: Any, source: str) -> Any:
    if name not in FIELDS:
        close = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else f"; valid names: {', '.join(FIELDS)}"
        raise ConfigError(f"unknown option {name!r} in {source}{hint}")
    try:
        parsed = _parse(str(FIELDS[name].type), value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"option {name!r} in {source} is {value!r}: expected {FIELDS[name].type}"
        ) from error
    if name in _POSITIVE and not parsed > 0:
        raise ConfigError(f"option {name!r} in {source} is {value!r}: it must be greater than 0")
    return parsed


def _parse(kind: str, value: Any) -> Any:
    if kind == "bool":
        if isinstance(value, str):
            lowered = value.strip().lower()
            if lowered not in {"1", "0", "true", "false", "yes", "no", "on", "off"}:
                raise ValueError(value)
            return lowered in {"1", "true", "yes", "on"}
        if not isinstance(value, bool):
            raise TypeError(value)
        return value
    if isinstance(value, bool):
        raise TypeError(value)
    if kind == "int":
        if isinstance(value, float) and not value.is_integer():
            raise ValueError(value)
        return int(value)
    if kind == "float":
        return float(value)
    if kind == "str":
        if not isinstance(value, str):
            raise TypeError(value)
        return value
    if isinstance(value, str):  # tuple of strings: comma separated in the environment
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if not all(isinstance(part, str) for part in value):
        raise TypeError(value)
    return tuple(value)
