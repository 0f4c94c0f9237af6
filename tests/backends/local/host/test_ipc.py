"""Tests of messages between the gateway and the child process."""

import asyncio
import math
import socket
from contextlib import suppress

import orjson
import pytest

from backends.local.decoding.job import DecodingOptions, DecodingStep, Job, Token
from backends.local.host.ipc import (
    MAX_BYTES,
    MAX_WAITING_BYTES,
    Channel,
    EngineReady,
    IpcError,
    decode_job,
    decode_ready,
    decode_steps,
    encode_job,
    encode_message,
    encode_steps,
)
from backends.local.scheduling.costs import Costs


@pytest.fixture
async def ends():
    """A channel and the raw socket at its other end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    channel = await Channel.open(ours)
    yield channel, theirs
    channel.close()
    theirs.close()
    await asyncio.sleep(0)


async def test_a_side_that_does_not_read_loses_its_connection(ends):
    """What waits for it is bounded, and gone with the connection."""
    channel, _ = ends
    message = b"x" * (MAX_BYTES // 2)
    for _ in range(2 * MAX_WAITING_BYTES // len(message)):
        channel.send(message)

    assert await channel.receive() is None
    assert channel._transport.get_write_buffer_size() == 0


def frame(body):
    return len(body).to_bytes(4) + body


async def test_a_message_arrives_whole(ends):
    """However it is split."""
    channel, theirs = ends
    for byte in frame(b'["pong",7]') + frame(b'["steps",[]]'):
        theirs.send(bytes([byte]))

    assert [await channel.receive(), await channel.receive()] == [["pong", 7], ["steps", []]]


async def test_a_message_is_sent_with_its_length(ends):
    channel, theirs = ends
    channel.send(b'["ping"]')

    assert await asyncio.get_running_loop().sock_recv(theirs, 100) == b'\0\0\0\x08["ping"]'


async def test_messages_pass_in_both_directions():
    """Also one that is larger than the buffer of a socket."""
    pair = socket.socketpair()
    ours, theirs = await Channel.open(pair[0]), await Channel.open(pair[1])
    large = b'["' + b"x" * 3_000_000 + b'"]'
    ours.send(large)
    theirs.send(b'["pong",1]')
    received = await theirs.receive(), await ours.receive()
    await ours.drain()
    ours.close()

    assert ([len(received[0][0])], received[1]) == ([3_000_000], ["pong", 1])
    assert await theirs.receive() is None
    theirs.close()
    theirs.send(b"[]")  # no error although the other side is gone


@pytest.mark.parametrize("cut", [b"", b"\0\0", frame(b'["pong",7]')[:-1]])
async def test_a_closed_connection_ends_receiving(ends, cut):
    """Also in the middle of a message."""
    channel, theirs = ends
    theirs.send(cut)
    theirs.close()

    assert await channel.receive() is None


@pytest.mark.parametrize("noise", [frame(b"{not json"), (MAX_BYTES + 1).to_bytes(4), b"\xff" * 64, frame(b"\xff")])
async def test_noise_is_an_error(ends, noise):
    """A length that is too large is not waited for."""
    channel, theirs = ends
    theirs.send(noise)

    with pytest.raises(IpcError):
        await channel.receive()


async def test_messages_are_forwarded_as_they_arrive(ends):
    """After those that came before. What is not taken is received, and nothing overtakes it."""
    channel, theirs = ends
    taken = []

    def take(message):
        if message[0] == "steps":
            taken.append(message[1])
        return message[0] == "steps"

    theirs.send(frame(b'["steps",1]'))
    await asyncio.sleep(0.01)
    channel.forward_messages(take)
    theirs.send(frame(b'["steps",2]'))
    await asyncio.sleep(0.01)
    received = [await channel.receive(), await channel.receive()]
    theirs.send(frame(b'["steps",3]') + frame(b'["pong",7]') + frame(b'["steps",4]'))
    received += [await channel.receive(), await channel.receive()]

    assert (received, taken) == ([["steps", 1], ["steps", 2], ["pong", 7], ["steps", 4]], [3])


@pytest.mark.parametrize("noise", [b"{not json", b'["steps"]'])
async def test_receiving_raises_what_forwarding_raised(ends, noise):
    """The connection is closed; what waited before is received first."""
    channel, theirs = ends
    theirs.send(frame(b'["pong",7]'))
    await asyncio.sleep(0.01)
    first = await channel.receive()
    channel.forward_messages(lambda message: message[1] == 0)
    theirs.send(frame(noise))

    assert first == ["pong", 7]
    with pytest.raises((IpcError, IndexError)):
        await channel.receive()
    assert await asyncio.get_running_loop().sock_recv(theirs, 1) == b""


async def test_no_more_is_read_than_is_received(ends):
    """A side that sends without end waits, until its messages are received."""
    channel, theirs = ends
    message, sent = frame(b'["' + b"x" * 9_000 + b'"]'), 0
    with suppress(BlockingIOError):
        while sent < 4_000_000:
            for _ in range(2):
                await asyncio.sleep(0)
            sent += theirs.send(message)
    received = [await channel.receive() for _ in range(sent // len(message))]
    await asyncio.sleep(0.01)

    assert sent < 2_000_000
    assert {len(each[0]) for each in received} == {9_000}
    assert theirs.send(message) > 0


async def test_drain_waits_for_the_reader(ends):
    """And raises an error when the other side is gone instead."""
    channel, theirs = ends
    channel.send(b"x" * 4_000_000)
    waiting = asyncio.create_task(channel.drain())
    await asyncio.sleep(0)

    assert not waiting.done()
    theirs.close()
    with pytest.raises(OSError, match=r"."):
        await waiting


def test_a_job_keeps_all_its_options():
    options = DecodingOptions(
        100, frozenset({2, 7}), temperature=0.5, top_p=0.9, top_k=5, repetition_penalty=1.1, grammar='{"a": "ü"}',
        top_logprobs=3, prefix_tokens=4, prefix_key="red",
    )  # fmt: skip
    job = Job(7, [1, 2, 3], options, team="search")
    kind, *content = orjson.loads(encode_job(job))

    assert (kind, decode_job(content)) == ("job", job)


def test_steps_keep_their_content():
    """All rows of a step are one message; logprobs that JSON lacks become the smallest one."""
    steps = [
        DecodingStep(1, cached_tokens=0),
        DecodingStep(2, [Token(5), Token(6)], "stop"),
        DecodingStep(3, [Token(4, -0.5, [(4, -0.5), (1, -1.25)])], "length", 64),
        DecodingStep(4, finish="failed", message="out of memory"),
        DecodingStep(5, [Token(3, -math.inf, [(3, math.nan)])]),
    ]
    kind, *content = orjson.loads(encode_steps(steps))
    received = decode_steps(content, 10)

    assert (kind, [(step.job, step.finish, step.cached_tokens, step.message) for step in received]) == (
        "steps",
        [(step.job, step.finish, step.cached_tokens, step.message) for step in steps],
    )
    assert [list(step.tokens) for step in received[:4]] == [list(step.tokens) for step in steps[:4]]
    assert received[4].tokens == [Token(3, -9999.0, [(3, -9999.0)])]


@pytest.mark.parametrize(
    "content",
    [
        [], [5], [[], []], [[1]], [[[1, [], None, None]]], [[[1, [10], None, None, ""]]], [[[1, [-1], None, None, ""]]],
        [[[1, ["x"], None, None, ""]]], [[[1, [True, None], None, None, ""]]], [[[1, [[1, "x", []]], None, None, ""]]],
        [[[1, [[1, -1.0, [[11, -1.0]]]], None, None, ""]]], [[[1, [], "done", None, ""]]], [[[1, [], None, "5", ""]]],
        [[[1, 5, None, None, ""]]], [[["1", [], None, None, ""]]], [[[{}, [], None, None, ""]]],
    ],
)  # fmt: skip
def test_invalid_steps_are_an_error(content):
    """Later code relies on valid ones."""
    with pytest.raises(IpcError):
        decode_steps(content, 10)


def test_the_ready_message_keeps_its_content():
    ready = EngineReady("cpu", "int8_float32", Costs(0.01, 0.1, 0.0005, 4096, 2))
    kind, content = orjson.loads(encode_message("ready", ready))

    assert (kind, decode_ready(content)) == ("ready", ready)


@pytest.mark.parametrize("content", [None, {}, {"device": "cpu", "compute_type": "int8", "costs": {"step_s": 1}}])
def test_an_invalid_ready_message_is_an_error(content):
    with pytest.raises(IpcError):
        decode_ready(content)
