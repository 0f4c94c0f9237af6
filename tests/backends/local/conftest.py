"""Local backends on tiny models, and helpers to call them."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from backends.local import Local
from backends.local.model import Model, read_model
from proxy.context import Caller, Context
from proxy.wire.call import Call
from proxy.wire.event import Event, Reply, Run
from tests.models import write_model

CALL = '{"name": "get_weather", "arguments": {"location": "Oslo"}}'
WEATHER = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers "Hello there!" to every prompt."""
    return write_model(tmp_path_factory.mktemp("hello"), ["Hello", " there", "!"])


@pytest.fixture(scope="session")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers with text, two function calls and more text."""
    answer = [
        "Wait.",
        "<tool_call>",
        CALL,
        "</tool_call>",
        "\n\n",
        "<tool_call>\n",
        CALL + " ",
        "\n</tool_call>",
        " Done.",
    ]
    return write_model(tmp_path_factory.mktemp("calling"), answer)


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers " tick tock" without end."""
    return write_model(tmp_path_factory.mktemp("endless"), [" tick", " tock"], loops=True, context_length=1_000_000)


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that counts slowly, because its vocabulary is large."""
    answer = [f" w{number}" for number in range(20_000)]
    return write_model(tmp_path_factory.mktemp("slow"), answer, loops=True, context_length=1_000_000)


@pytest.fixture(scope="session")
def model(folder: Path) -> Model:
    return read_model(folder)


@pytest.fixture
async def start_local() -> AsyncIterator[Callable[..., Awaitable[Local]]]:
    """Return a function that starts local backends: `await start_local(folder, **keys)`. The fixture closes them.

    They run in this process, which is faster; a gateway uses engine="process".
    """
    async with AsyncExitStack() as started:

        async def start(folder: Path, **keys: Any) -> Local:
            local = Local(**{"name": "local", "path": folder, "engine": "thread"} | keys)
            await local.start()
            started.push_async_callback(local.close)
            return local

        yield start


def engine_processes(parent: int | None = None) -> list[int]:
    """Return the ids of the engine processes that a gateway started; by default those of this process."""
    found = []
    for place in Path("/proc").iterdir():
        with suppress(OSError):
            if place.name.isdigit() and b"/host/child_start.py" in (place / "cmdline").read_bytes():
                status = (place / "stat").read_text().rpartition(")")[2].split()
                if int(status[1]) == (parent or os.getpid()) and status[0] != "Z":
                    found.append(int(place.name))
    return sorted(found)


async def until(condition: Callable[[], object], patience_s: float = 60) -> None:
    """Wait until the condition is true."""
    async with asyncio.timeout(patience_s):
        while not condition():  # noqa: ASYNC110  other processes cannot set an event here
            await asyncio.sleep(0.01)


def respond(local: Local, *, team: str = "red", **body: Any) -> AbstractAsyncContextManager[Reply]:
    """Return the reply to a request of a team, to be entered."""
    return local.respond(Call({"model": "tiny", **body}), Context("req_1", Caller("ann", team)))


async def ask(local: Local, *, team: str = "red", **body: Any) -> list[Event | Run]:
    """Return all events of the answer to a request, and the runs between them."""
    async with respond(local, team=team, **body) as reply:
        assert reply.batches is not None
        return [unit async for batch in reply.batches for unit in batch]
