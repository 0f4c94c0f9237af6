"""Messages between the gate and an engine's process."""

import asyncio
import math
import socket

import orjson
import pytest

from backends.local.decoding.job import Job, Options, Step, Token
from backends.local.host.ipc import (
    MAX_BYTES,
    BrokenLink,
    Link,
    Ready,
    job_message,
    job_of,
    message,
    ready_of,
    steps_message,
    steps_of,
)
from backends.local.scheduling.costs import Costs


@pytest.fixture
async def ends():
    """A link and the bare socket at its other end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    link = await Link.over(ours)
    yield link, theirs
    link.close()
    theirs.close()
    await asyncio.sleep(0)


def framed(body):
    return len(body).to_bytes(4) + body


async def test_a_message_arrives_whole(ends):
    """Whatever its pieces."""
    link, theirs = ends
    for byte in framed(b'["pong",7]') + framed(b'["steps",[]]'):
        theirs.send(bytes([byte]))

    assert [await link.receive(), await link.receive()] == [["pong", 7], ["steps", []]]


async def test_what_is_sent_is_framed(ends):
    link, theirs = ends
    link.send(b'["ping"]')

    assert await asyncio.get_running_loop().sock_recv(theirs, 100) == b'\0\0\0\x08["ping"]'


async def test_messages_pass_both_ways_between_two_links():
    """Also one that is larger than what a socket holds."""
    pair = socket.socketpair()
    ours, theirs = await Link.over(pair[0]), await Link.over(pair[1])
    large = b'["' + b"x" * 3_000_000 + b'"]'
    ours.send(large)
    theirs.send(b'["pong",1]')
    heard = await theirs.receive(), await ours.receive()
    await ours.room()
    ours.close()

    assert ([len(heard[0][0])], heard[1]) == ([3_000_000], ["pong", 1])
    assert await theirs.receive() is None
    theirs.close()
    theirs.send(b"[]")  # to nobody: nothing happens


@pytest.mark.parametrize("cut", [b"", b"\0\0", framed(b'["pong",7]')[:-1]])
async def test_the_end_is_the_end(ends, cut):
    """In the middle of a message, too."""
    link, theirs = ends
    theirs.send(cut)
    theirs.close()

    assert await link.receive() is None


@pytest.mark.parametrize("noise", [framed(b"{not json"), (MAX_BYTES + 1).to_bytes(4), b"\xff" * 64, framed(b"\xff")])
async def test_noise_breaks_the_link(ends, noise):
    """A length that is none is not waited for."""
    link, theirs = ends
    theirs.send(noise)

    with pytest.raises(BrokenLink):
        await link.receive()


async def test_room_is_waited_for_while_nobody_reads(ends):
    """And comes when somebody does; when the other side is gone instead, that is an error."""
    link, theirs = ends
    link.send(b"x" * 4_000_000)
    waiting = asyncio.create_task(link.room())
    await asyncio.sleep(0)

    assert not waiting.done()
    theirs.close()
    with pytest.raises(OSError, match=r"."):
        await waiting


def test_a_job_arrives_as_it_was():
    """With all its options."""
    options = Options(
        100, frozenset({2, 7}), temperature=0.5, top_p=0.9, top_k=5, repetition_penalty=1.1, grammar='{"a": "ü"}',
        top_logprobs=3, prefix=4, prefix_key="red",
    )  # fmt: skip
    job = Job(7, [1, 2, 3], options)
    kind, *content = orjson.loads(job_message(job))

    assert (kind, job_of(content)) == ("job", job)


def test_steps_arrive_as_they_were():
    """All of one step of the model in one message; what cannot be said in JSON is the least there is."""
    steps = [
        Step(1, cached_tokens=0),
        Step(2, [Token(5), Token(6)], "stop"),
        Step(3, [Token(4, -0.5, [(4, -0.5), (1, -1.25)])], "length", 64),
        Step(4, finish="failed", message="out of memory"),
        Step(5, [Token(3, -math.inf, [(3, math.nan)])]),
    ]
    kind, *content = orjson.loads(steps_message(steps))
    heard = steps_of(content, 10)

    assert (kind, [(step.job, step.finish, step.cached_tokens, step.message) for step in heard]) == (
        "steps",
        [(step.job, step.finish, step.cached_tokens, step.message) for step in steps],
    )
    assert [list(step.tokens) for step in heard[:4]] == [list(step.tokens) for step in steps[:4]]
    assert heard[4].tokens == [Token(3, -9999.0, [(3, -9999.0)])]


@pytest.mark.parametrize(
    "content",
    [
        [], [5], [[], []], [[1]], [[[1, [], None, None]]], [[[1, [10], None, None, ""]]], [[[1, [-1], None, None, ""]]],
        [[[1, ["x"], None, None, ""]]], [[[1, [True, None], None, None, ""]]], [[[1, [[1, "x", []]], None, None, ""]]],
        [[[1, [[1, -1.0, [[11, -1.0]]]], None, None, ""]]], [[[1, [], "done", None, ""]]], [[[1, [], None, "5", ""]]],
        [[[1, 5, None, None, ""]]], [[["1", [], None, None, ""]]], [[[{}, [], None, None, ""]]],
    ],
)  # fmt: skip
def test_steps_that_are_none_break_the_link(content):
    """Nothing behind it would be ready for them."""
    with pytest.raises(BrokenLink):
        steps_of(content, 10)


def test_what_came_of_the_start_arrives_as_it_was():
    ready = Ready("cpu", "int8_float32", Costs(0.01, 0.1, 0.0005, 4096, 2))
    kind, given = orjson.loads(message("ready", ready))

    assert (kind, ready_of(given)) == ("ready", ready)


@pytest.mark.parametrize("given", [None, {}, {"device": "cpu", "compute_type": "int8", "costs": {"step_s": 1}}])
def test_an_answer_to_the_start_that_is_none_breaks_the_link(given):
    with pytest.raises(BrokenLink):
        ready_of(given)
