"""The differences between a worker process and a gateway of one process."""

import asyncio
import socket
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from aiohttp import web

from proxy.config.build import Config
from proxy.config.process_tables import ServerTable
from proxy.control import Answer, Assignment, Link, Respond, answer_supervisor
from proxy.http.listening import BACKLOG, explain_error
from proxy.http.tls import ListenerTls


async def listen(
    server: web.Server, settings: ServerTable, sockets: Sequence[socket.socket], resources: AsyncExitStack
) -> str:
    """Accept connections on these sockets, and return the address. No more are accepted when `resources` are closed.

    Raises OSError if the port is taken, ValueError if the certificate cannot be used.
    """
    options: dict[str, Any] = {"backlog": BACKLOG}
    if settings.tls_cert is not None and settings.tls_key is not None:
        tls = ListenerTls(settings.tls_cert, settings.tls_key)
        options |= {"ssl": tls.context, "ssl_handshake_timeout": settings.head_timeout_s}
        await resources.enter_async_context(tls.following())
    for each in sockets:
        try:
            listener = await asyncio.get_running_loop().create_server(server, sock=each, **options)
        except OSError as error:  # another gateway has bound the port as well, and was ready before this one
            raise explain_error(error, settings.host, settings.port) from error
        resources.callback(listener.close)
    return address_of(sockets[0], settings.scheme)


def address_of(listener: socket.socket, scheme: str) -> str:
    """Return the address on which a socket listens."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def report_to(
    assignment: Assignment | None,
    answers: Mapping[str, Answer | None],
    respond: Respond,
    ending: asyncio.Event | None,
    resources: AsyncExitStack,
) -> None:
    """Say to the supervisor, if there is one, that this worker serves, and answer its questions from now on.

    `answers` are those to its own questions, `respond` answers those of the admin API.
    """
    if assignment is None:
        return
    link = await Link.over(assignment.control)
    stop = (lambda: None) if ending is None else ending.set
    known = {"ping": _alive, **{word: answer for word, answer in answers.items() if answer is not None}}
    answering = asyncio.create_task(answer_supervisor(link, known, stop, respond))
    resources.callback(link.close)
    resources.callback(answering.cancel)
    link.send("started")


async def _alive() -> None:
    """Answer, which is all that is asked."""


def config_of_worker(config: Config, assignment: Assignment) -> Config:
    """Return the config of one of several workers: its share of the limits, and files of its own."""
    server = config.server
    limits = {"memory_bytes": server.memory_bytes // assignment.count}
    if server.max_connections is not None:
        limits["max_connections"] = max(1, server.max_connections // assignment.count)
    changed: dict[str, object] = {"server": server.model_copy(update=limits)}
    for name, table in (("audit", config.audit), ("record", config.record)):
        if table is not None:
            path = table.path.with_suffix(f".{assignment.number}{table.path.suffix}")
            changed[name] = table.model_copy(update={"path": path})
    return config.model_copy(update=changed)
