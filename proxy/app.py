"""Config -> objects -> a running server. Opens and closes everything that lives as long as the process."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
from aiohttp import web
from opentelemetry.trace import Tracer

from backends import Backend, least_values_of
from proxy.admin.observer import Observer
from proxy.admin.operating import make_observer, operating
from proxy.cache.cache import Cache
from proxy.config.build import Config
from proxy.context import Caller
from proxy.control import Assignment
from proxy.history import History
from proxy.http.assembly import build_dispatcher, build_health, build_server
from proxy.identity.directory import Directory, fingerprint
from proxy.identity.issued_keys import IssuedKeys
from proxy.pipeline import Pipeline
from proxy.pricing.prices import Prices
from proxy.routing.attempts import Attempts
from proxy.routing.ejections import SharedEjections
from proxy.routing.routes import Routes
from proxy.routing.targets import Targets
from proxy.rules import Rules
from proxy.state.background import Background
from proxy.state.compaction import Compaction
from proxy.state.conversations import Conversations
from proxy.state.journal import Journals
from proxy.state.local_resources import LocalResources
from proxy.state.ownership import Ownership
from proxy.state.resources import Resources
from proxy.state.responses import StoredResponses
from proxy.state.sealing import Sealing
from proxy.stores import Store
from proxy.stores.memory import MemoryStore
from proxy.telemetry.audit import Audit
from proxy.telemetry.files import QueuedFile
from proxy.telemetry.logs import LogTally
from proxy.telemetry.recorder import Recorder
from proxy.telemetry.trace import tracer_provider
from proxy.worker_process import listen, report_to
from proxy.workers import BodyMemory, Workers

log = structlog.get_logger()

Flush = Callable[[float], object]
"""Writes the lines that are queued, for at most so many seconds."""
LAST_LINES_S = 0.5
"""How long the second signal waits for queued lines of logs, audit and record, in seconds: a disk may be stuck."""


def build_pipeline(
    config: Config,
    sealing: Sealing,
    *,
    audit: Audit | None = None,
    recorder: Recorder | None = None,
    prices: Prices | None = None,
) -> Pipeline:
    """Connect the steps of the path of a call, and what the gateway keeps; nothing is started."""
    content, ttl_s = content_store(config.state), config.state_ttl_s
    ownership = Ownership(config.state, ttl_s, allows_unknown=config.unknown_ids == "allow")
    seals = None if config.state_secret is None else sealing
    kept, conversations = StoredResponses(content, ttl_s, seals), Conversations(content, ttl_s, seals)
    cache = Cache(config.cache, config.cache_store)
    routes = Routes(config.routes)
    rules = Rules(
        config.rules,
        config.state,
        ownership,
        audit=audit,
        recorder=recorder,
        least_values=least_values_of(config.backends.values()),
    )
    journals = Journals(content, config.state_settings.resume_window_s, seals)
    background = Background(config.state, journals, config.state_settings, rules, kept)
    local = LocalResources(kept, conversations, background)
    # Other processes cannot read a store in memory.
    targets = Targets(
        None if isinstance(config.state, MemoryStore) else SharedEjections(config.state),
        has_teams=config.has_teams, prices=prices,
    )  # fmt: skip
    resources = Resources(rules, ownership, routes, config.backends, local, cache.forget, targets)
    history = History(kept, conversations)
    return Pipeline(
        rules, ownership, routes, cache, history, Attempts(targets), resources, Compaction(sealing), background,
        log_metadata=config.server.log_metadata,
    )  # fmt: skip


def content_store(state: Store) -> Store:
    """Return the store of responses and conversations: that of [state], but in memory one of its own.

    A store in memory drops what was not used for long when it is full. A few large responses must not drop the owners
    of other teams' ids.
    """
    return MemoryStore.model_validate(state.model_dump()) if isinstance(state, MemoryStore) else state


async def _sealing(config: Config) -> Sealing:
    """What seals values. Without callers and a durable state a lost key has no consequence: no warning is due."""
    sealing = Sealing(config.state_secret, config.state)
    if config.callers or not isinstance(config.state, MemoryStore):
        await sealing.start()
    return sealing


def _stop(stop: asyncio.Event, flush_logs: Flush, files: Sequence[QueuedFile], signal_number: int) -> None:
    """Begin to drain, or end the process once the lines queued so far are written, within `LAST_LINES_S`."""
    if stop.is_set():
        end = time.monotonic() + LAST_LINES_S
        for flush in (flush_logs, *(file.flush for file in files)):
            flush(max(0.0, end - time.monotonic()))
        os._exit(128 + signal_number)
    stop.set()


def _reopen(files: Sequence[QueuedFile]) -> None:
    """Continue files that were renamed in new ones."""
    for file in files:
        file.follow_rotation()
    log.info("files.reopened", count=len(files))


@asynccontextmanager
async def running(
    config: Config,
    tracer: Tracer | None = None,
    files: list[QueuedFile] | None = None,
    ending: asyncio.Event | None = None,
    logged: LogTally | None = None,
    assignment: Assignment | None = None,
) -> AsyncIterator[str]:
    """Start the gateway and give its address. Leaving the block drains and closes it, and `ending` announces that.

    The files that it appends to are added to `files`. `logged` counts what this process logs.
    Raises OSError if the port is taken, ValueError or OSError if a part cannot start.
    """
    async with AsyncExitStack() as resources:
        observer = make_observer(config.admin)
        config = config if observer is None else _measured(config, observer)
        await _start_parts(config, resources)
        audit, recorder = _open_files(config, resources, [] if files is None else files)
        workers = Workers()
        resources.callback(workers.close)
        pipeline = await _open_pipeline(config, resources, audit, recorder)
        memory = BodyMemory(config.server.memory_bytes, has_teams=config.has_teams)
        health = build_health(config, pipeline, audit, recorder, ending)
        metrics = None if observer is None else observer.requests
        directory = await _directory(config, resources)
        dispatcher = build_dispatcher(
            config, pipeline, workers, memory, health, directory, tracer=tracer, metrics=metrics
        )
        server = build_server(config, dispatcher, workers)
        if observer is not None:
            observer.watch(server, memory, pipeline)
            observer.watch_output(logged or LogTally(), {"audit": audit, "record": recorder})
            admin = config.admin if assignment is None else None  # else the supervisor answers
            await resources.enter_async_context(operating(admin, observer, health.report))
        runner = web.ServerRunner(server, shutdown_timeout=config.server.drain_s)
        await runner.setup()
        resources.push_async_callback(_drain, runner, pipeline.background, config.server.drain_s)
        address = await listen(runner, config.server, assignment)
        await report_to(assignment, observer, health, ending, resources)
        yield address


async def _directory(config: Config, resources: AsyncExitStack) -> Directory:
    """Return the callers of the config, and those of issued keys as long as the process runs."""
    callers = {
        caller.digest: Caller(caller.name, caller.team, fingerprint=fingerprint(caller.digest))
        for caller in config.callers
    }
    directory = Directory(callers, has_issued=config.keys is not None)
    if config.keys is not None:
        issued = IssuedKeys(config.state, directory, config.keys.refresh_s)
        await resources.enter_async_context(issued.following())
    return directory


async def _open_pipeline(
    config: Config, resources: AsyncExitStack, audit: Audit | None, recorder: Recorder | None
) -> Pipeline:
    """Return the pipeline, whose parts are closed with `resources`. Lookups of prices have begun."""
    prices = Prices(config.prices)
    resources.push_async_callback(prices.close)
    pipeline = build_pipeline(config, await _sealing(config), audit=audit, recorder=recorder, prices=prices)
    resources.callback(pipeline.rules.decisions.log_summary)
    resources.push_async_callback(pipeline.cache.close)
    resources.push_async_callback(pipeline.attempts.targets.close)
    pipeline.attempts.targets.prefetch_prices(config.routes)
    return pipeline


def _measured(config: Config, observer: Observer) -> Config:
    """Return a config whose stores are measured."""
    cache = config.cache_store
    stores = {"state": observer.measured(config.state, "state")}
    stores |= {} if cache is None else {"cache_store": observer.measured(cache, "cache")}
    return config.model_copy(update=stores)


async def _start_parts(config: Config, resources: AsyncExitStack) -> None:
    """Start the stores and the backends. Raises ValueError or OSError if one cannot start."""
    parts: list[Backend | Store] = [config.state, *config.backends.values()]
    if config.cache_store is not None:
        parts.append(config.cache_store)
    for part in parts:
        await part.start()
        resources.push_async_callback(part.close)
    await config.state.check_durable()
    _log_warnings(config)


def _log_warnings(config: Config) -> None:
    if config.callers and isinstance(config.state, MemoryStore):
        log.warning("state.not_durable", consequence="a restart forgets responses, owners, budgets and blocks")
    for warning in config.warnings:
        log.warning("config.warned", reason=warning)


async def _drain(runner: web.ServerRunner, background: Background, drain_s: float) -> None:
    """Let running calls and background responses finish, at the same time."""
    closing = asyncio.create_task(background.close(drain_s))
    try:
        await runner.cleanup()
    finally:
        await closing
        await background.close(0)  # what a last request has started


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


async def serve(
    config: Config,
    greet: Callable[[str, Sequence[str]], None],
    flush_logs: Flush,
    logged: LogTally,
    assignment: Assignment | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then let running calls finish; a second signal ends the process at once.

    A process with an `assignment` is one of several workers.

    SIGHUP opens the files of [audit] and [record] anew, unless the process has a terminal, whose end it then is. Under
    `nohup` it stays ignored. `greet` receives the address and the models of the routes.
    """
    stop = asyncio.Event()
    files: list[QueuedFile] = []
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, _stop, stop, flush_logs, files, name)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        if sys.stderr is not None and sys.stderr.isatty():
            loop.add_signal_handler(signal.SIGHUP, _stop, stop, flush_logs, files, signal.SIGHUP)
        else:
            loop.add_signal_handler(signal.SIGHUP, _reopen, files)
    provider = tracer_provider(logged.losses)
    try:
        tracer = provider.get_tracer("headgate") if provider else None
        async with running(config, tracer, files, stop, logged, assignment) as address:
            models = [route.model for route in config.routes]
            if assignment is None:
                log.info("server.started", address=f"{address}/v1", models=models)
                greet(address, models)
            await stop.wait()
            log.info("server.stopping", drain_s=config.server.drain_s)
            await asyncio.sleep(config.server.drain_delay_s)
    finally:
        if provider is not None:
            await asyncio.to_thread(provider.shutdown)
    log.info("server.stopped")
