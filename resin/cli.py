"""The command `resin`: finds the module of a command by name and imports only that one.

A command is a module `resin/commands/<name>.py` with a one-line `HELP`, `configure(parser)` and
`run(args) -> int`. `args.config` holds the Config. Exit codes: 0 well, 1 a leak was found, 2 could not do it.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

from . import commands
from .config import ConfigError, load_config, make_config


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options, rest = _split(arguments)
    names = command_names()
    if not rest or rest[0] in {"-h", "--help", "help"}:
        print(overview())
        return 0 if rest else 2
    if rest[0] == "--version":
        print(_version())
        return 0
    name = rest[0].replace("-", "_")
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"commands: {', '.join(names)}"
        print(f"resin: there is no command {rest[0]!r}; {hint}", file=sys.stderr)
        return 2
    module = command(name)
    parser = argparse.ArgumentParser(prog=f"resin {rest[0]}", description=module.HELP)
    module.configure(parser)
    args = parser.parse_args(rest[1:])
    try:
        args.config = _config(options)
        return int(module.run(args))
    except ConfigError as error:
        print(f"resin: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
        return 0


def command_names() -> list[str]:
    """Names of all commands, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(commands.__path__) if not m.name.startswith("_"))


def command(name: str) -> ModuleType:
    """Module of one command."""
    return importlib.import_module(f"{commands.__name__}.{name}")


def overview() -> str:
    """Help text: every command with its one line."""
    lines = [
        "usage: resin [--config FILE] [--set NAME=VALUE ...] COMMAND [ARGUMENTS]",
        "",
        "Finds memory leaks in long-running jobs, diagnoses and mitigates them.",
        "",
    ]
    for name in command_names():
        try:
            text = command(name).HELP
        except ImportError as error:
            text = f"(not available: {error}; pip install 'torchroller[resin]')"
        lines.append(f"  {name:<10} {text}")
    lines += [
        "",
        "resin COMMAND --help tells more. Options for --set and the TOML file: resin doctor --options",
    ]
    return "\n".join(lines)


def _split(arguments: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Options before the command, and the rest."""
    options: dict[str, list[str]] = {"--config": [], "--set": []}
    index = 0
    while index < len(arguments):
        name, equals, value = arguments[index].partition("=")
        if name not in options:
            break
        if not equals:
            index += 1
            value = arguments[index] if index < len(arguments) else ""
        options[name].append(value)
        index += 1
    return options, arguments[index:]


def _config(options: dict[str, list[str]]):  # noqa: ANN202
    config = load_config(options["--config"][-1] if options["--config"] else None)
    given = {}
    for setting in options["--set"]:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting!r} is not NAME=VALUE")
        given[name.strip()] = value
    return make_config(given, source="--set", base=config)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"resin (torchroller {version('torchroller')})"
    except PackageNotFoundError:
        return "resin (not installed)"
