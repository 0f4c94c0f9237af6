"""The command line: `headgate serve | check | explain | policy | model | audit | whois | block | unblock`.

Results on stdout, logs on stderr. Exit 0: good; 1: the answer is no, or a crash; 2: what was typed is at fault.
"""

import argparse
import asyncio
import gc
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from proxy.app import serve
from proxy.commands import audit, identity, model, policy, show
from proxy.config import ConfigError, embedded, read
from proxy.telemetry.logs import write_logs

GOOD, YOUR_INPUT = 0, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    parser = argparse.ArgumentParser(
        prog="headgate",
        description="The gate in front of every model.",
        epilog="example: headgate serve --config my.toml",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "serve", help="serve until stopped", epilog="example: headgate serve --config my.toml"
    )
    command.add_argument("--config", type=Path, help="a TOML file; left out: the embedded defaults")
    command.set_defaults(run=_serve)
    for subject in (show, policy, model, audit, identity):
        subject.add_to(commands)
    options = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    serves = run is _serve
    write_logs(least=logging.INFO if serves else logging.ERROR, for_good=serves)
    try:
        return run(options)
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return YOUR_INPUT


def _serve(options: argparse.Namespace) -> int:
    config = embedded() if options.config is None else read(options.config)
    try:
        with asyncio.Runner(loop_factory=_fast_loop()) as runner:
            gc.freeze()  # what is there now stays: no collection need look at it again
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


if __name__ == "__main__":
    sys.exit(main())
