"""Local backends on tiny models, and one way to ask them."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from backends.local import Local
from backends.local.model import Model, read_model
from proxy.wire.call import Call, Caller
from proxy.wire.event import Event
from tests.models import write_model

CALL = '{"name": "get_weather", "arguments": {"location": "Oslo"}}'
WEATHER = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says "Hello there!" to everything."""
    return write_model(tmp_path_factory.mktemp("hello"), ["Hello", " there", "!"])


@pytest.fixture(scope="session")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says something, calls two functions and says something else."""
    says = [
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
    return write_model(tmp_path_factory.mktemp("calling"), says)


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says "tick tock" until it is stopped."""
    return write_model(tmp_path_factory.mktemp("endless"), [" tick", " tock"], loops=True, context_length=1_000_000)


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that counts, and takes some time over it: its vocabulary is large."""
    says = [f" w{number}" for number in range(20_000)]
    return write_model(tmp_path_factory.mktemp("slow"), says, loops=True, context_length=1_000_000)


@pytest.fixture(scope="session")
def model(folder: Path) -> Model:
    return read_model(folder)


@pytest.fixture
async def start_local() -> AsyncIterator[Callable[..., Awaitable[Local]]]:
    """Start local backends: `await start_local(folder, **keys)`. They are closed when the test ends.

    They run in this process, which is quick; engine="process" is what a gate has.
    """
    async with AsyncExitStack() as started:

        async def start(folder: Path, **keys: Any) -> Local:
            local = Local(**{"name": "local", "path": folder, "engine": "thread"} | keys)
            await local.start()
            started.push_async_callback(local.close)
            return local

        yield start


def engine_processes(parent: int | None = None) -> list[int]:
    """The engines that a gate has started; of this very process when none is named."""
    found = []
    for place in Path("/proc").iterdir():
        with suppress(OSError):
            if place.name.isdigit() and b"backends.local.host.child_main" in (place / "cmdline").read_bytes():
                status = (place / "stat").read_text().rpartition(")")[2].split()
                if int(status[1]) == (parent or os.getpid()) and status[0] != "Z":
                    found.append(int(place.name))
    return sorted(found)


async def until(so: Callable[[], object], patience_s: float = 60) -> None:
    """Look until it is so."""
    async with asyncio.timeout(patience_s):
        while not so():  # noqa: ASYNC110  what other processes do sets no event here
            await asyncio.sleep(0.01)


def call_of(**body: Any) -> Call:
    return Call(Caller("ann", "red"), {"model": "tiny", **body}, {})


async def ask(local: Local, **body: Any) -> list[Event]:
    """All events of the answer to a request."""
    async with local.respond(call_of(**body)) as reply:
        return [event async for batch in reply.batches for event in batch]
