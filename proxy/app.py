"""config -> objects -> a running server; opens and closes what lives as long as the process."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import structlog
from aiohttp import web
from opentelemetry.trace import Tracer

from backends import Backend
from proxy.telemetry.audit import Audit
from proxy.cache import Cache
from proxy.config import Config
from proxy.door import Door
from proxy.health import Health
from proxy.history import History
from proxy.http import LOOPBACK_NAMES, Http
from proxy.identify import Identify
from proxy.observe import traces_from_environment
from proxy.pipeline import Pipeline
from proxy.telemetry.recorder import Recorder
from proxy.routes import Routes
from proxy.rules import Rules
from proxy.stores import Store
from proxy.context import Caller

log = structlog.get_logger()


def answering(config: Config, rules: Rules, tracer: Tracer | None) -> Http:
    """All that answers requests, put together; nothing is started."""
    pipeline = Pipeline(
        rules=rules,
        routes=Routes(config.routes),
        cache=Cache(config.cache, config.store),
        history=History(),
    )
    hosts = frozenset(config.server.hosts) or (frozenset() if config.callers else LOOPBACK_NAMES)
    return Http(
        identify=Identify({caller.digest: Caller(caller.name, caller.team) for caller in config.callers}),
        pipeline=pipeline,
        health=Health(config.backends, config.store),
        server=config.server,
        hosts=hosts,
        tracer=tracer,
    )


@asynccontextmanager
async def running(config: Config, tracer: Tracer | None = None) -> AsyncIterator[str]:
    """The gate, started and listening; gives its address. Leaving the block drains and closes it.

    Raises OSError when the port is taken, ValueError or OSError when a backend cannot start.
    """
    async with AsyncExitStack() as opened:
        parts: list[Backend | Store] = [config.state, *config.backends.values()]
        if config.store is not None:
            parts.append(config.store)
        for part in parts:
            await part.start()
            opened.push_async_callback(part.close)
        begun: Counter[str] = Counter()
        for rule in config.rules:
            await rule.policy.start(config.state, begun[rule.name])
            begun[rule.name] += 1
        audit = None if config.audit is None else Audit(config.audit)
        recorder = None if config.record is None else Recorder(config.record)
        for file in (audit, recorder):
            if file is not None:
                file.open()
                opened.callback(file.close)
        server = config.server
        door = Door(
            answering(config, Rules(config.rules, audit, recorder), tracer),
            head_timeout_s=server.head_timeout_s,
            idle_timeout_s=server.idle_timeout_s,
            request_factory=partial(_request, server.max_body_bytes),
        )
        runner = web.ServerRunner(door, shutdown_timeout=server.drain_s)
        await runner.setup()
        opened.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, server.host, server.port, backlog=1024).start()
        host, port = runner.addresses[0][:2]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(config: Config, greet: Callable[[str, Sequence[str]], None]) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then let running calls finish.

    `greet` gets the address and the routes' models. A gate under `nohup` outlives its terminal: SIGHUP stays ignored.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if name != signal.SIGHUP or signal.getsignal(name) != signal.SIG_IGN:
            loop.add_signal_handler(name, stopped.set)
    provider = traces_from_environment()
    try:
        async with running(config, provider.get_tracer("headgate") if provider else None) as address:
            models = [model for model, _ in config.routes]
            log.info("server.started", address=f"{address}/v1", models=models)
            greet(address, models)
            await stopped.wait()
            log.info("server.stopping", drain_s=config.server.drain_s)
    finally:
        if provider is not None:
            await asyncio.to_thread(provider.shutdown)
    log.info("server.stopped")


def _request(max_body_bytes: int, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    if message.upgrade:  # none is granted, and aiohttp loses what came right behind one: nothing more may come
        message = message._replace(should_close=True)
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=max_body_bytes)
