"""The command line: `headgate serve | check | explain`. Results on stdout, logs on stderr."""

import argparse
import asyncio
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from backends import Backend
from policies import Policy
from proxy.app import serve
from proxy.config import Config, ConfigError, embedded, read
from proxy.load import load
from proxy.observe import write_logs
from proxy.settings import Table
from proxy.stores import Store

GOOD, CRASHED, YOUR_INPUT = 0, 1, 2
ROOMS: dict[str, type[Table]] = {"policies": Policy, "backends": Backend, "proxy.stores": Store}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 when all is well, 1 after a crash, 2 when the input is at fault."""
    parser = argparse.ArgumentParser(
        prog="headgate",
        description="The gate in front of every model.",
        epilog="example: headgate serve --config my.toml",
    )
    commands = parser.add_subparsers(required=True, metavar="serve | check | explain")
    for name, run, told in (
        ("serve", _serve, "serve until stopped"),
        ("check", _check, "read the config and print the path that calls take"),
    ):
        command = commands.add_parser(name, help=told, epilog=f"example: headgate {name} --config my.toml")
        command.add_argument("--config", type=Path, help="a TOML file; left out: the embedded defaults")
        command.set_defaults(run=run)
    explain = commands.add_parser("explain", help="print what a policy, backend or store does, and its keys",
                                  epilog="example: headgate explain max_tool_calls")  # fmt: skip
    explain.add_argument("name", help="as it stands behind `use`")
    explain.set_defaults(run=_explain)
    options = parser.parse_args(arguments)
    chosen: Callable[[argparse.Namespace], int] = options.run
    try:
        return chosen(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return YOUR_INPUT


def _config(options: argparse.Namespace) -> Config:
    return embedded() if options.config is None else read(options.config)


def _serve(options: argparse.Namespace) -> int:
    config = _config(options)
    write_logs()
    try:
        with asyncio.Runner(loop_factory=_fast_loop()) as runner:
            runner.run(serve(config, _greet))
    except (OSError, ValueError) as error:  # a port that is taken, a model that is not there
        print(f"headgate cannot start: {error}", file=sys.stderr)
        return YOUR_INPUT
    return GOOD


def _greet(address: str, models: Sequence[str]) -> None:
    """Tell a person where the gate listens and what to try."""
    model = next((model for model in models if "*" not in model), "YOUR-MODEL")
    print(f"Headgate listens on {address}/v1. Try:", flush=True)
    body = f'{{"model": "{model}", "input": "Hello!"}}'
    print(f"  curl {address}/v1/responses -H 'Content-Type: application/json' -d '{body}'", flush=True)


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop  # type: ignore[no-any-return,unused-ignore]


def _check(options: argparse.Namespace) -> int:
    for line in _path(_config(options)):
        print(line)
    return GOOD


def _path(config: Config) -> Iterator[str]:
    """The path of a call, in order, one line for each hop."""
    yield f"listen    {config.server.host}:{config.server.port}"
    callers = ", ".join(f"{caller.name} (team {caller.team})" for caller in config.callers)
    yield f"identify  {callers or 'anybody, on loopback only'}"
    for rule in config.rules:
        own = " ".join(f"{key}={value!r}" for key, value in rule.policy.model_dump().items() if value is not None)
        yield f"policy    {rule.name} [{rule.mode}] {own}"
    for glob, backend in config.routes:
        yield f"route     {glob} -> {backend.name} ({type(backend).__name__.lower()})"
    yield f"cache     {'none' if config.cache is None else f'{config.cache.use}, ttl {config.cache.ttl_s:g} s'}"


def _explain(options: argparse.Namespace) -> int:
    for room, kind in ROOMS.items():
        try:
            explained = load(options.name, room, kind)
        except ValueError:
            continue
        module = inspect.getmodule(explained)
        print(f"{options.name}: {inspect.getdoc(module) or ''}\n\nKeys:")
        for line in _keys(explained):
            print(line)
        return GOOD
    print(f"There is no policy, backend or store called '{options.name}'.", file=sys.stderr)
    return YOUR_INPUT


def _keys(explained: type[Table]) -> Iterator[str]:
    for name, field in explained.model_fields.items():
        default = "required" if field.is_required() else f"default {field.default!r}"
        yield f"  {name} ({default})"
        if field.description:
            yield f"      {' '.join(field.description.split())}"


if __name__ == "__main__":
    sys.exit(main())
