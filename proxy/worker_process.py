"""What a worker process does otherwise than a gateway of one process."""

import asyncio
from contextlib import AsyncExitStack

from aiohttp import web

from proxy.admin.observer import Observer
from proxy.config.build import Config
from proxy.config.schema import ServerTable
from proxy.control import Answer, Assignment, Link, answer_supervisor

BACKLOG = 1024


async def listen(runner: web.ServerRunner, settings: ServerTable, assignment: Assignment | None) -> str:
    """Accept connections, on the socket of the supervisor if there is one; return the address."""
    if assignment is None:
        await web.TCPSite(runner, settings.host, settings.port, backlog=BACKLOG).start()
    else:
        await web.SockSite(runner, assignment.listener, backlog=BACKLOG).start()
    host, port = runner.addresses[0][:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def report_to(
    assignment: Assignment | None,
    observer: Observer | None,
    report: Answer,
    reload: Answer | None,
    ending: asyncio.Event | None,
    resources: AsyncExitStack,
) -> None:
    """Say to the supervisor, if there is one, that this worker serves, and answer its questions from now on."""
    if assignment is None:
        return
    link = await Link.over(assignment.control)
    answers: dict[str, Answer] = {"ping": _alive, "ready": report}
    if observer is not None:
        answers["metrics"] = observer.encoded
    if reload is not None:
        answers["reload"] = reload
    stop = (lambda: None) if ending is None else ending.set
    answering = asyncio.create_task(answer_supervisor(link, answers, stop))
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
