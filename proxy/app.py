"""Config -> a running server. Opens and closes everything that lives as long as the process."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import structlog
from aiohttp import web
from opentelemetry.trace import Tracer

from proxy.admin.answers import ProcessAnswers
from proxy.admin.observer import Observer
from proxy.admin.operating import make_observer, operating
from proxy.admin.parts import GatewayParts
from proxy.admin.processes import Processes
from proxy.composition import content_store
from proxy.config.build import Config
from proxy.control import Assignment
from proxy.early_start import was_hung_up
from proxy.gateway import ConfigGeneration, Gateway, callers_by_digest
from proxy.http.assembly import build_server
from proxy.http.key_fetch import fetch_keys
from proxy.http.listening import ADMIN, bind, close
from proxy.http.server import Server
from proxy.identity.directory import Directory
from proxy.identity.issued_keys import IssuedKeys
from proxy.identity.sign_in import SignIn
from proxy.pricing.prices import Prices
from proxy.process_state import ProcessState
from proxy.reloading import ReadConfig, Reloading, answer_steps, following, reload_by
from proxy.routing.ejections import SharedEjections
from proxy.routing.targets import Targets
from proxy.state.secret_check import start_sealing
from proxy.stores.memory import MemoryStore
from proxy.telemetry.audit import Audit
from proxy.telemetry.files import QueuedFile
from proxy.telemetry.finished import FinishedRequests
from proxy.telemetry.logs import LogTally
from proxy.telemetry.otlp import tracer_provider
from proxy.telemetry.recent import RecentRequests
from proxy.telemetry.recorder import Recorder
from proxy.telemetry.sampling import RequestSpans
from proxy.usage.flush import counting
from proxy.worker_process import listen, report_to
from proxy.workers import BodyMemory, Workers

log = structlog.get_logger()

Flush = Callable[[float], object]
"""Writes the queued lines, for at most this many seconds."""
LAST_LINES_S = 0.5
"""How long the second signal waits for queued lines of logs, audit and record, in seconds: a disk may be stuck."""


def _stop(stop: asyncio.Event, flushes: Sequence[Flush], files: Sequence[QueuedFile], signal_number: int) -> None:
    """Begin to drain, or end the process once the lines so far are written, within `LAST_LINES_S`."""
    if stop.is_set():
        end = time.monotonic() + LAST_LINES_S
        for flush in (*flushes, *(file.flush for file in files)):
            flush(max(0.0, end - time.monotonic()))
        os._exit(128 + signal_number)
    stop.set()


def _hang_up(files: Sequence[QueuedFile], reloading: Reloading, assignment: Assignment | None) -> None:
    """Reopen renamed files, and read the config again unless a supervisor does."""
    for file in files:
        file.follow_rotation()
    log.info("files.reopened", count=len(files))
    if assignment is None:
        reloading.wanted.set()


@asynccontextmanager
async def running(  # noqa: PLR0913  each a part of its own
    config: Config,
    tracer: Tracer | None = None,
    files: list[QueuedFile] | None = None,
    ending: asyncio.Event | None = None,
    logged: LogTally | None = None,
    *,
    assignment: Assignment | None = None,
    reloading: Reloading | None = None,
    finished: FinishedRequests | None = None,
) -> AsyncIterator[str]:
    """Start the gateway and give its address. Leaving the block drains and closes it, and `ending` announces that.

    `files` gets its files; `logged` counts what it logs, `finished` has what it will log. Raises OSError, ValueError.
    """
    async with AsyncExitStack() as resources:
        sockets, admin_sockets = _bind(config, assignment, resources)
        observer = make_observer(config)
        config = await _start_state(config, observer, resources)
        process = await _process_state(config, resources, files, finished, assignment)
        process.spans, process.ending = RequestSpans.of(tracer), ending or process.ending
        gateway = Gateway(process, observer)
        resources.push_async_callback(gateway.close)
        await gateway.start(config)
        server = build_server(config, gateway.current.dispatcher, process.workers)
        gateway.on_switch = partial(_replace_handler, server)
        reload = None if reloading is None else reload_by(gateway, reloading)
        respond = ProcessAnswers(_parts_of(gateway, process, observer, reloading))
        if observer is not None:
            _watch(observer, server, gateway, process, logged or LogTally())
            own = Processes(respond.ask_self, observer.copy, gateway.report, reload)
            await resources.enter_async_context(operating(config, observer, None if assignment else own, admin_sockets))
        runner = web.ServerRunner(server, shutdown_timeout=config.server.drain_s)
        await runner.setup()
        resources.push_async_callback(_drain, runner, gateway, config.server.drain_s)
        await resources.enter_async_context(following(gateway, reloading))
        address = await listen(server, config.server, sockets, resources)
        answers = {"ready": gateway.report, "metrics": getattr(observer, "encoded", None)}
        await report_to(assignment, answers, answer_steps(gateway, reloading, respond), ending, resources)
        yield address


def _watch(observer: Observer, server: Server, gateway: Gateway, process: ProcessState, logged: LogTally) -> None:
    """Connect an observer with the parts that have their own counters."""
    observer.measure(process.finished)
    observer.watch(server, process.memory, lambda: gateway.current.pipeline)
    observer.watch_teams(lambda: process.calls)
    observer.watch_output(logged, {"audit": process.audit, "record": process.recorder})
    observer.watch_reloads(gateway.reloads)
    observer.watch_issuers(process.directory.issuers)


def _parts_of(
    gateway: Gateway, process: ProcessState, observer: Observer | None, reloading: Reloading | None
) -> GatewayParts:
    """Return the parts of this process that operators read and change."""
    return GatewayParts(
        config=lambda: gateway.current.config,
        pipeline=lambda: gateway.current.pipeline,
        process=process,
        recent=RecentRequests if observer is None else observer.recent,
        preview=None if reloading is None else partial(gateway.preview, reloading.read),
    )


def _bind(
    config: Config, assignment: Assignment | None, resources: AsyncExitStack
) -> tuple[Sequence[socket.socket], Sequence[socket.socket]]:
    """Return the sockets of the gateway and of [admin], whose ports are not taken. Raises OSError."""
    if assignment is not None:
        return [assignment.listener], []  # the supervisor answers operators
    listeners = bind(config.server.host, config.server.port)
    resources.callback(close, listeners)
    admin = [] if config.admin is None else bind(config.admin.host, config.admin.port, ADMIN)
    resources.callback(close, admin)
    return listeners, admin


def _replace_handler(server: Server, generation: ConfigGeneration) -> None:
    """Answer the next requests of all connections, existing ones included, with a generation."""
    server.replace_handler(generation.dispatcher)
    server.admission.evicts_idle = generation.config.has_teams


async def _start_state(config: Config, observer: Observer | None, resources: AsyncExitStack) -> Config:
    """Start the store of [state], and return a config in which it is measured. Raises ValueError, OSError."""
    state = config.state if observer is None else observer.measured(config.state, "state")
    await state.start()
    resources.push_async_callback(state.close)
    await state.check_durable()
    _log_warnings(config)
    return config.model_copy(update={"state": state})


async def _process_state(
    config: Config,
    resources: AsyncExitStack,
    files: list[QueuedFile] | None,
    finished: FinishedRequests | None,
    assignment: Assignment | None,
) -> ProcessState:
    """Return the objects that live as long as the process."""
    audit, recorder = _open_files(config, resources, [] if files is None else files)
    finished = finished or FinishedRequests()
    resources.callback(finished.write)
    workers, state = Workers(), config.state
    spool = None if assignment is None else assignment.spool
    resources.callback(workers.close)
    # Other processes cannot read a store in memory.
    shared = None if isinstance(state, MemoryStore) else SharedEjections(state)
    prices = Prices(config.prices)
    resources.push_async_callback(prices.close)
    targets = Targets(shared, has_teams=config.has_teams, prices=prices)
    resources.push_async_callback(targets.close)
    directory = await _directory(config, resources)
    sealing = await start_sealing(config.state_secret, state, is_open=config.is_open)
    memory_bytes, has_teams = config.server.memory_bytes, config.has_teams
    return ProcessState(
        audit, recorder, directory, sealing, content_store(state), targets, workers,
        BodyMemory(memory_bytes, has_teams=has_teams), BodyMemory(memory_bytes // 4, has_teams=has_teams),
        finished=finished, usage=await resources.enter_async_context(counting(config.usage, state, spool)),
    )  # fmt: skip


async def _directory(config: Config, resources: AsyncExitStack) -> Directory:
    """Return the callers of the config, and those of issued keys as long as the process runs."""
    sign_in = SignIn(fetch_keys)
    resources.push_async_callback(sign_in.close)
    directory = Directory(
        callers_by_digest(config), config.teamless_callers, has_issued=config.keys is not None, sign_in=sign_in
    )
    if config.keys is not None:
        issued = IssuedKeys(config.state, directory, config.keys.refresh_s)
        await resources.enter_async_context(issued.following())
    return directory


def _log_warnings(config: Config) -> None:
    if not config.is_open and isinstance(config.state, MemoryStore):
        log.warning("state.not_durable", consequence="a restart forgets responses, owners, budgets and blocks")
    for warning in config.warnings:
        log.warning("config.warned", reason=warning)


async def _drain(runner: web.ServerRunner, gateway: Gateway, drain_s: float) -> None:
    """Let running calls and background responses finish, at the same time."""
    closing = asyncio.create_task(gateway.close_backgrounds(drain_s))
    try:
        await runner.cleanup()
    finally:
        await closing
        await gateway.close_backgrounds(0)  # what a last request has started


def _open_files(
    config: Config, resources: AsyncExitStack, files: list[QueuedFile]
) -> tuple[Audit | None, Recorder | None]:
    """Open the files of [audit] and [record], as far as they are configured. Raises OSError, ValueError."""
    audit = None if config.audit is None else Audit(config.audit)
    recorder = None if config.record is None else Recorder(config.record)
    for file in (audit, recorder):
        if file is not None:
            file.open()
            resources.callback(file.close)
            files.append(file)
    if audit is not None and config.digest is not None:
        audit.write_event("config.loaded", {"config_sha256": config.digest})
    return audit, recorder


def _handle_signals(stop: Callable[[int], None], hang_up: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop, name)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        is_terminal = sys.stderr is not None and sys.stderr.isatty()
        loop.add_signal_handler(signal.SIGHUP, partial(stop, signal.SIGHUP) if is_terminal else hang_up)
        if was_hung_up():
            hang_up()
    else:
        log.info("server.hang_ups_ignored")


async def serve(
    config: Config,
    read_again: ReadConfig,
    greet: Callable[[str, Sequence[str]], None],
    flush_logs: Flush,
    logged: LogTally,
    assignment: Assignment | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then let running calls finish; a second signal ends the process at once.

    A process with an `assignment` is one of several workers. SIGHUP opens the files of [audit] and [record] anew and
    reads the config again, unless the process has a terminal, whose end it then is. Under `nohup` it stays ignored.
    `greet` receives the address and the models of the routes.
    """
    files: list[QueuedFile] = []
    stop, reloading, finished = asyncio.Event(), Reloading(read_again), FinishedRequests(logged.put_lines)
    flushes: list[Flush] = [lambda _: finished.write(), flush_logs]
    _handle_signals(partial(_stop, stop, flushes, files), partial(_hang_up, files, reloading, assignment))
    provider = tracer_provider(logged.losses)
    try:
        tracer = provider.get_tracer("headgate") if provider else None
        async with running(
            config, tracer, files, stop, logged, assignment=assignment, reloading=reloading, finished=finished
        ) as address:
            models = [route.model for route in config.routes]
            if assignment is None:
                log.info("server.started", address=f"{address}/v1", models=models)
                greet(address, models)
            await stop.wait()
            finished.write()  # what has ended before is logged before
            log.info("server.stopping", drain_s=config.server.drain_s)
            await asyncio.sleep(config.server.drain_delay_s)
    finally:
        if provider is not None:
            await asyncio.to_thread(provider.shutdown)
    log.info("server.stopped")
