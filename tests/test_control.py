"""What supervisor and workers say to each other: messages that are too long, or are none."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from proxy import control
from proxy.admin.problem import Problem
from proxy.control import Link, Questions, answer_supervisor


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Link, asyncio.StreamWriter]]:
    """One end of a connection, and what writes to it at the other end."""
    own, other = socket.socketpair()
    link = await Link.over(own)
    _, writer = await asyncio.open_connection(sock=other)
    yield link, writer
    link.close()
    writer.close()


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(4) + message


ODD = {
    "no JSON": framed(b"{"),
    "no pair": framed(b"[1]"),
    "a number": framed(b"7"),
    "nothing": framed(b""),
    "nested too deeply": framed(b"[" * 2_000),
    "too long": (control.MAX_BYTES + 1).to_bytes(4),
    "broken off": framed(b'["ping",null]')[:-1],
}


@pytest.mark.parametrize("sent", ODD.values(), ids=ODD)
async def test_what_is_no_message_ends_the_connection(pair: tuple[Link, asyncio.StreamWriter], sent: bytes):
    """Those before it are read."""
    link, writer = pair
    writer.write(framed(b'["ping",null]') + sent)
    writer.write_eof()

    assert await link.receive() == ("ping", None)
    with pytest.raises(EOFError):
        await link.receive()


async def test_a_worker_stops_when_its_supervisor_sends_no_message(pair: tuple[Link, asyncio.StreamWriter]):
    """It could not be stopped by it any more."""
    link, writer = pair
    stopped = asyncio.Event()
    writer.write(framed(b"{"))
    await answer_supervisor(link, {}, stopped.set)

    assert stopped.is_set()


async def test_an_answer_that_is_too_long_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    """The process that has asked does not take the other one for hung."""
    monkeypatch.setattr(control, "MAX_BYTES", 1_000)
    own, other = socket.socketpair()
    supervisor, worker = await Link.over(own), await Link.over(other)

    async def respond(word: str, argument: Any) -> Any:
        return {"value": "x" * argument}

    questions = Questions()
    answering = asyncio.create_task(answer_supervisor(worker, {}, lambda: None, respond))
    asked = [asyncio.create_task(questions.ask([supervisor], "keys", size, 60)) for size in (10, 2_000)]
    for _ in asked:
        _, value = await supervisor.receive()
        questions.settle(*value)
    short, long = [(await task)[0] for task in asked]
    answering.cancel()
    supervisor.close()
    worker.close()

    assert short == {"value": "x" * 10}
    assert Problem(*long["problem"]).code == "answer_too_long"
    assert orjson.dumps(long)
