"""Runs the services for operators: the listener, the export of metrics, the watch on the event loop."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from proxy.admin.listener import listening
from proxy.admin.observer import Observer
from proxy.admin.processes import Processes
from proxy.config.build import Config
from proxy.telemetry.otlp import is_wanted

log = structlog.get_logger()


def make_observer(config: Config) -> Observer | None:
    """Return the observer of the gateway; None if its metrics are neither served nor sent."""
    if config.admin is None and not is_wanted("metrics"):
        return None
    observer = Observer(0 if config.admin is None else config.admin.requests)
    observer.requests.scheme = config.server.scheme
    return observer


@asynccontextmanager
async def operating(
    config: Config, observer: Observer, processes: Processes | None, sockets: Sequence[socket.socket]
) -> AsyncIterator[None]:
    """Serve metrics on these sockets, and send them, inside the block. Without `processes` another process serves them.

    Raises OSError if the port is taken, ValueError if metrics cannot be sent as it is asked for.
    """
    async with AsyncExitStack() as resources:
        await resources.enter_async_context(observer.watching_loop())
        if is_wanted("metrics"):
            from proxy.telemetry.otlp_metrics import metric_exporter, pushing

            push = await resources.enter_async_context(pushing(metric_exporter(), observer.snapshot))
            observer.watch_losses({"metrics": lambda: push.failures})
        if config.admin is not None and processes is not None:
            address = await resources.enter_async_context(listening(config, processes, sockets))
            log.info("admin.started", address=address)
        yield
