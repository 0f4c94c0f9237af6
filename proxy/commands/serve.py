"""`headgate serve`: one process, or a supervisor and its workers."""

import argparse
import asyncio
import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from policies.support.globs import is_glob
from proxy.app import serve
from proxy.commands.options import DEFAULT_CONFIG, HOST, PORT, add_address, add_config, is_from
from proxy.commands.outcome import INPUT_ERROR, SUCCESS, reason
from proxy.config.build import Config, read
from proxy.config.consistency import listen_faults
from proxy.config.default import default_config
from proxy.config.validation import ConfigError
from proxy.control import NUMBER, Assignment
from proxy.fast_loop import fast_loop
from proxy.freed_memory import returning_freed_memory
from proxy.supervisor import Supervisor
from proxy.telemetry.logs import Logs, LogTally
from proxy.worker_process import config_of_worker

SWITCH_INTERVAL_S = 0.0001
"""How long a thread waits for the interpreter's lock before it demands it, in seconds. Python's own is 0.005.

So long may a thread that works on a large body keep the event loop waiting. The other way round it has to be shorter
than the loop usually holds the lock: the loop releases it for each system call and takes it again within microseconds,
and a thread that is woken by that and comes too late begins to wait anew. With 0.0005 SQLite's thread, which gives the
lock up at each step, took 10 to 130 ms for a write beside a busy loop.
"""
COLLECTION_THRESHOLDS = (20_000, 20, 20)
"""When the garbage collector runs. A request makes hundreds of objects and hardly a cycle: with Python's own thresholds
(700, 10, 10) collections are a sixth of the cost of a stream."""


def add_to(commands: Any) -> None:
    """Add this command to a parser."""
    command = commands.add_parser(
        "serve", help="serve until stopped", epilog="example: headgate serve --config my.toml"
    )
    add_config(command, text=DEFAULT_CONFIG)
    add_address(command)
    command.set_defaults(run=None)


def serve_until_stopped(options: argparse.Namespace, logs: Logs, tally: LogTally) -> int:
    """Serve, and return the exit status."""
    assignment = _assignment()
    texts = None if assignment is None else assignment.texts

    def read_again(running: Config | None, content: str | None = None) -> Config:
        first = None if texts is None else texts.first
        config = default_config(running) if options.config is None else read(options.config, running, content, first)
        config = _with_address(config, options.host, options.port)
        return config if assignment is None else config_of_worker(config, assignment)

    config = read_again(None, None if texts is None else texts.served)
    logs.choose_format(config.log.format)
    if assignment is not None or config.server.worker_count > 1:
        logs.share_stderr()
    if assignment is None and config.server.worker_count > 1:
        return _supervise(config)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        greet = partial(_greet, is_open=config.is_open)
        with returning_freed_memory(), asyncio.Runner(loop_factory=fast_loop()) as runner:
            gc.freeze()  # everything imported stays: collections skip it
            gc.set_threshold(*COLLECTION_THRESHOLDS)
            runner.run(serve(config, read_again, greet, logs.close, tally, assignment))
    except (OSError, ValueError) as error:  # a port in use, a missing model
        print(f"headgate cannot start: {reason(error)}", file=sys.stderr)
        return INPUT_ERROR
    return SUCCESS


def _assignment() -> Assignment | None:
    """Return the assignment of this worker; None without a supervisor. Raises ConfigError if it is invalid."""
    try:
        return Assignment.of_environment()
    except (KeyError, OSError, ValueError) as error:
        raise ConfigError(f"{NUMBER}: only a supervisor sets it, for its workers; unset it") from error


def _supervise(config: Config) -> int:
    """Serve with several worker processes, which are started with the arguments of this one."""
    models = [route.model for route in config.routes]
    command = [sys.executable, "-m", "proxy", *sys.argv[1:]]
    try:
        supervisor = Supervisor(config, command, config.server.worker_count)
    except OSError as error:
        print(f"headgate cannot start: {reason(error)}", file=sys.stderr)
        return INPUT_ERROR
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        return runner.run(supervisor.run(lambda address: _greet(address, models, is_open=config.is_open)))


def _with_address(config: Config, host: str | None, port: int | None) -> Config:
    """Return a config that listens where the command line says. Raises ConfigError for a place that is not safe."""
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    server = config.server.model_copy(update=given)
    faults = [*listen_faults(server, config.admin, is_open=config.is_open)] if given else []
    if faults:
        set_by = [name for name, value in ((HOST, host), (PORT, port)) if is_from(name, value)]
        raise ConfigError("\n".join([*faults, *(f"  {name} is set to {os.environ[name]}." for name in set_by)]))
    return config.model_copy(update={"server": server})


def _greet(address: str, models: Sequence[str], *, is_open: bool) -> None:
    """Print the address and a first request. A stdout that takes nothing is no reason not to serve."""
    model = next((model for model in models if not is_glob(model)), "YOUR-MODEL")
    body = f'{{"model": "{model}", "input": "Hello!"}}'
    key = "" if is_open else " -H 'Authorization: Bearer YOUR-KEY'"
    with suppress(OSError):
        print(f"Headgate listens on {address}/v1. Try:", flush=True)
        print(f"  curl {address}/v1/responses{key} -H 'Content-Type: application/json' -d '{body}'", flush=True)
