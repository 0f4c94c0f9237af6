"""Runs the tests of the client on both event loops, each with an upstream on a raw socket."""

import asyncio

import pytest
import uvloop

from tests.raw import RawUpstream, playing, until, whole


def pytest_asyncio_loop_factories():
    """Return the loops by name."""
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def upstream():
    """An upstream that answers each request with `ok` until a test sets `play`; no connection to it is left behind."""
    async with RawUpstream(playing(whole(b"ok"))) as server:
        yield server
        await until(lambda: server.open == 0)
