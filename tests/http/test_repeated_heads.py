"""Heads that repeat the last one: the result is that of aiohttp's parser, however the bytes arrive."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.http.heads import MAX_HEAD_BYTES as MAX_BYTES
from proxy.http.heads import BoundedHeads
from proxy.http.repeated_heads import MAX_HEAD_BYTES
from proxy.loop_turns import LoopTurns
from proxy.workers import Pace
from tests.http.test_hostile_heads import AMBIGUOUS_LENGTHS, BODY, INVALID_HEADS, head
from tests.raw import ask, no_tasks_left, post, until, wire  # noqa: F401
from tests.upstream import FakeUpstream

CHAT = head("Authorization: Bearer sk-1", f"Content-Length: {len(BODY)}")
OTHER_KEY = CHAT.replace(b"sk-1", b"sk-2")
BUFFER_BYTES = 1024
"""Of twice as much of a body the reading is paused."""
LONGER = CHAT.replace(b"13", b"120") + BODY + b" " * 107
REPEATABLE = (
    CHAT + BODY, CHAT + BODY.replace(b"m", b"n"), LONGER, CHAT.replace(b"13", b"9") + BODY[:9], OTHER_KEY + BODY,
    head("content-length:13", "X-Last: 1") + BODY, head("content-length:1024", "X-Last: 1") + b" " * 1024,
)  # fmt: skip
WITHOUT_BODY = head(first="GET /healthz HTTP/1.1")
IN_CHUNKS = head("Transfer-Encoding: chunked") + b"d\r\n" + BODY + b"\r\n0\r\n\r\n"
UPGRADE = head("Connection: upgrade", "Upgrade: h2c", "Content-Length: 13") + BODY
LAST = head("Content-Length: 13", "Connection: close") + BODY
LONG = head("Content-Length: 3000") + b" " * 3000
OTHERS = (
    WITHOUT_BODY,
    head("Content-Length: 0"),
    head("Content-Length: 0000000000013") + BODY,
    CHAT.replace(b"13", b"013") + BODY,
    CHAT.replace(b"13", b"13 ") + BODY,
    CHAT.replace(b"13", b"+13") + BODY,
    CHAT.replace(b"13", b"1_3") + BODY,
    CHAT.replace(b"13", b"") + BODY,
    CHAT.replace(b"13", b"13, 13") + BODY,
    CHAT.replace(b"13", b"13\r\nContent-Length: 13") + BODY,
    CHAT.replace(b"13", b"13\nX-Line: 13") + BODY,
    CHAT.replace(b"13", b"99999999999"),
    CHAT.replace(b"13", b"0"),
    head("Content-Length: " + "0" * 5000 + "13") + BODY,
    IN_CHUNKS,
    LAST,
    head("Content-Length: 13", first="POST / HTTP/1.0") + BODY,
    head("Content-Length: 13", "Connection: keep-alive", first="POST / HTTP/1.0") + BODY,
    head("Content-Length: 13", "Content-Encoding: gzip") + BODY,
    head("Content-Length: 13", "Expect: 100-continue") + BODY,
    head("Connection: upgrade", "Upgrade: websocket", first="GET / HTTP/1.1") + b"frames",
    head("Connection: upgrade", "Upgrade: websocket", "Content-Length: 13") + BODY,
    UPGRADE,
    head(first="CONNECT localhost:80 HTTP/1.1"),
    b"\r\n\r\n" + CHAT + BODY,
    b"\r\n" + CHAT + BODY,
    CHAT.replace(b"\r\n", b"\n") + BODY,
    CHAT.replace(b": ", b":") + BODY,
    CHAT.replace(b"\r\n\r\n", b"\n\r\n") + BODY,
    CHAT.replace(b"13", b"17") + BODY + b"\r\n\r\n",
    head(f"X-Long: {'a' * MAX_HEAD_BYTES}", "Content-Length: 13") + BODY,
    head("Content-Length: 1025") + b" " * 1025,
    LONG,
)
INVALID = (*AMBIGUOUS_LENGTHS.values(), *INVALID_HEADS.values())


class Plain(BoundedHeads):
    """A connection of which the parser reads everything."""

    __slots__ = ()

    def receive_repeated(self, data: bytes) -> bool:
        return False

    def receive(self, data: bytes) -> None:
        web.RequestHandler.data_received(self, data)


class Reader:
    """Gives bytes to a connection, and takes its requests, as the loop of requests does."""

    def __init__(self, kind: type[BoundedHeads], loop: asyncio.AbstractEventLoop) -> None:
        self.connection = kind(
            web.Server(_never, loop=loop), pace=Pace(), turns=LoopTurns(), loop=loop,
            max_head_bytes=MAX_BYTES, read_bufsize=BUFFER_BYTES,
        )  # fmt: skip
        self.taken: list[tuple[Any, Any]] = []
        self._loop = loop

    def receive(self, data: bytes) -> None:
        """Give it bytes. The next request is awaited if all others are answered."""
        connection = self.connection
        if not connection._messages and (not self.taken or self.taken[-1][1].is_eof()):
            connection._current_request, connection._request_in_progress = None, False
            connection._waiter = self._loop.create_future()
        connection.data_received(data)

    def take(self) -> None:
        """Take the next request once all of the last one has arrived."""
        connection = self.connection
        if connection._messages and (not self.taken or self.taken[-1][1].is_eof()):
            connection._waiter = None
            message, body = connection._messages.popleft()
            if connection._parser is not None:
                connection._parser.message_consumed()
            connection._current_request, connection._request_in_progress = SimpleNamespace(content=body), True
            self.taken.append((message, body))

    def read(self) -> Sequence[bytes]:
        """Read what has arrived of each body."""
        return [body.read_nowait() for _, body in self.taken]

    @property
    def is_closed(self) -> bool:
        """Whether no request follows: a head was not valid, or the protocol is another one."""
        messages = [message for message, _ in (*self.taken, *self.connection._messages)]
        return self.connection._upgraded or any(type(each) is _ErrInfo for each in messages)

    def state(self) -> tuple[object, ...]:
        """Return what the connection has made of its bytes."""
        connection = self.connection
        requests = [_facts(message, body) for message, body in (*self.taken, *connection._messages)]
        head = connection._head_began is None, connection._head_bytes
        return requests, head, connection._request_count, connection._upgraded, connection._message_tail


async def _never(_: web.BaseRequest) -> web.StreamResponse:
    raise AssertionError


def _facts(message: Any, body: Any) -> tuple[object, ...]:
    if isinstance(message, _ErrInfo):
        return message.status, type(message.exc)
    names = ("method", "path", "version", "should_close", "compression", "upgrade", "chunked", "url")
    facts = [getattr(message, name) for name in names]
    return (
        *facts,
        [*message.headers.items()],
        body.total_bytes,
        body is EMPTY_PAYLOAD,
        body.is_eof(),
        type(body.exception()),
    )


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_the_invalid_heads_of_this_test_are_refused_by_the_parser(loop: asyncio.AbstractEventLoop) -> None:
    """So what follows compares something."""
    for request in INVALID_HEADS.values():
        reader = Reader(Plain, loop)
        reader.receive(request)

        assert all(isinstance(message, _ErrInfo) for message, _ in reader.connection._messages)


OFTEN = st.sampled_from(REPEATABLE)
REQUESTS = st.lists(OFTEN | OFTEN | OFTEN | st.sampled_from(OTHERS) | st.sampled_from(INVALID), max_size=8)


@st.composite
def pieces(draw: st.DrawFn) -> list[tuple[bytes, bool]]:
    """Requests in one piece or several, or several in one piece; and whether the piece is followed by answers."""
    cut = list[bytes]()
    for request in draw(REQUESTS):
        ends = draw(st.lists(st.integers(0, len(request)) | st.just(request.find(b"\r\n\r\n") + 4), max_size=2))
        bounds = [0, *sorted(ends), len(request)]
        cut += [request[start:end] for start, end in pairwise(bounds) if start < end]
    joined = list[tuple[bytes, bool]]()
    for piece in cut:
        if joined and draw(st.integers(0, 5)) == 0:
            joined[-1] = joined[-1][0] + piece, joined[-1][1]
        else:
            joined.append((piece, draw(st.integers(0, 5)) > 0))
    return joined


@settings(max_examples=300)
@given(sent=pieces())
@example(sent=[(CHAT + BODY, True), (CHAT + BODY + CHAT[:4], True), (CHAT + BODY, True)])
@example(sent=[(LAST, True), (LAST, True)])
@example(sent=[(CHAT + BODY, True), (CHAT[:20], True), (CHAT + BODY, True)])
@example(sent=[(CHAT + BODY[:5], True), (BODY[5:] + CHAT[:4], True), (CHAT + BODY, True)])
@example(sent=[(CHAT + BODY, True), (CHAT + BODY[:5], True), (BODY[5:] + CHAT[:4], True), (CHAT + BODY, True)])
def test_requests_are_those_that_the_parser_finds(
    loop: asyncio.AbstractEventLoop, sent: list[tuple[bytes, bool]]
) -> None:
    """In every state: after a repeated head, in the middle of a body, with answers that are late, and as streams."""
    plain, repeating, streaming = (Reader(kind, loop) for kind in (Plain, BoundedHeads, BoundedHeads))
    for data, is_answered in sent:
        for reader in (plain, repeating, streaming):
            reader.receive(data)

        assert plain.state() == repeating.state() == streaming.state()
        if plain.is_closed:
            break
        for _ in range(3 if is_answered else 0):
            for reader in (plain, repeating, streaming):
                reader.take()
            assert plain.read() == repeating.read() == streaming.read()
            streaming.connection.release_parser()


def messages_of(loop: asyncio.AbstractEventLoop, *sent: bytes) -> list[Any]:
    """Return the heads that a connection has made of bytes, each of which arrive when all else is answered."""
    reader = Reader(BoundedHeads, loop)
    for data in sent:
        reader.receive(data)
        reader.take()
        reader.read()
    return [message for message, _ in reader.taken]


REPEATED = {
    "whole": [CHAT + BODY] * 2,
    "with another body": [CHAT + BODY, CHAT + BODY.replace(b"m", b"n")],
    "with a longer body": [CHAT + BODY, LONGER, LONGER],
    "head and body apart": [CHAT, BODY, CHAT, BODY],
    "a body in parts": [CHAT + BODY[:5], BODY[5:9], BODY[9:], CHAT, BODY[:3], BODY[3:]],
    "after a request without a body": [WITHOUT_BODY, CHAT + BODY, CHAT + BODY],
}


@pytest.mark.parametrize("sent", REPEATED.values(), ids=REPEATED)
def test_a_head_that_repeats_the_last_one_is_not_parsed(loop: asyncio.AbstractEventLoop, sent: list[bytes]) -> None:
    """The request has the same head, in one object."""
    *_, last, repeated = messages_of(loop, *sent)

    assert last is repeated


def test_a_head_with_another_length_is_not_parsed(loop: asyncio.AbstractEventLoop, monkeypatch) -> None:
    """Its request is as the parser would make it, which sees the first head only."""
    expected = [_facts(message, EMPTY_PAYLOAD) for message in messages_of(loop, CHAT + BODY)]
    parsed = list[bytes]()
    plain = BoundedHeads._parse
    monkeypatch.setattr(BoundedHeads, "_parse", lambda self, data: (parsed.append(data), plain(self, data))[1])
    first, longer, last = messages_of(loop, CHAT + BODY, LONGER, CHAT + BODY)

    assert parsed == [CHAT + BODY]
    assert [_facts(message, EMPTY_PAYLOAD) for message in (first, last)] == expected * 2
    assert (longer.headers["content-length"], first.headers["content-length"]) == ("120", "13")


PARSED = {
    "another key": [CHAT + BODY, OTHER_KEY + BODY],
    "the last head but one": [CHAT + BODY, OTHER_KEY + BODY, CHAT + BODY],
    "after one in chunks": [IN_CHUNKS, CHAT + BODY, CHAT + BODY],
    "after an upgrade that is not supported": [UPGRADE, CHAT + BODY, CHAT + BODY],
    "after a long body": [LONG, CHAT + BODY, CHAT + BODY],
    "without a body": [WITHOUT_BODY] * 2,
    "a long head": [head(f"X-Long: {'a' * MAX_HEAD_BYTES}", "Content-Length: 13") + BODY] * 2,
    "a long body": [head(f"Content-Length: {BUFFER_BYTES + 1}") + b" " * (BUFFER_BYTES + 1)] * 2,
    "two at once": [CHAT + BODY, (CHAT + BODY) * 2, CHAT + BODY],
}


@pytest.mark.parametrize("sent", PARSED.values(), ids=PARSED)
def test_all_other_heads_are_parsed(loop: asyncio.AbstractEventLoop, sent: list[bytes]) -> None:
    """Each has an object of its own."""
    messages = messages_of(loop, *sent)

    assert len({id(message) for message in messages}) == len(messages) > 1


def test_a_request_before_the_last_one_is_answered_is_parsed(loop: asyncio.AbstractEventLoop) -> None:
    """Pipelined requests are the parser's, which counts them."""
    reader = Reader(BoundedHeads, loop)
    for _ in range(2):
        reader.receive(CHAT + BODY)
    (first, _), (second, _) = reader.connection._messages

    assert first is not second


@pytest.mark.parametrize("parts", [1, 2, 3])
async def test_repeated_heads_have_their_own_bodies(gateway: str, upstream: FakeUpstream, parts: int):
    """Each request is answered, in however many reads it arrives."""
    async with wire(gateway) as connection:
        for number in range(5):
            request = post(b'{"model":"%d"}' % number)
            ends = [*(0, request.index(b"{"), request.index(b"}"))[:parts], len(request)]
            for start, end in pairwise(ends):
                await connection.send(request[start:end])
                await asyncio.sleep(0.005)

            assert (await connection.answer()).status == 200

    assert [received.body["model"] for received in upstream.requests] == [*"01234"]


async def test_what_follows_the_body_of_a_repeated_head_is_the_next_request(gateway: str, upstream: FakeUpstream):
    """Also if it arrives with the end of the body, and if it is invalid."""
    request = post(BODY)
    async with wire(gateway) as connection:
        for _ in range(2):
            await connection.send(request)
            assert (await connection.answer()).status == 200
        await connection.send(request[:-5])
        await asyncio.sleep(0.005)
        await connection.send(request[-5:] + request)
        assert [(await connection.answer()).status for _ in range(2)] == [200, 200]
        await connection.send(INVALID_HEADS["a NUL in a value"])

        assert (await connection.answer()).status == 400
        assert await connection.rest() == b""
    assert len(upstream.requests) == 4


async def test_a_client_may_disconnect_in_the_body_of_a_repeated_head(gateway: str, upstream: FakeUpstream, logged):
    """The request ends, and no call is made."""
    request = post(BODY)
    async with wire(gateway) as connection:
        for _ in range(2):
            await connection.send(request)
            await connection.answer()
        await connection.send(request[:-5])
        await asyncio.sleep(0.01)

    await until(lambda: [line["status"] for line in logged if line["event"] == "request.finished"] == [200, 200, 499])
    assert len(upstream.requests) == 2


SPACES = b'{"model":"m"}', b'{"model":"m"}', b'{"model":"m"         }'
TRACE, OTHER_TRACE = (f"00-{digit * 32}-{digit * 16}-00" for digit in "12")
OF_ONE_CLIENT = [
    [post(body, Session_id="s1") for body in SPACES],
    [post(body, Session_id="s2") for body in SPACES],
    [post(body, target="/v1/responses?include=a") for body in SPACES],
    [post(body, target="/v1/responses?include=b") for body in SPACES],
    [post(body, target="/v1/answers") for body in SPACES],
    [post(body).replace(b"application/json", b"text/plain") for body in SPACES],
    [post(body).replace(b"/json", b"/json; charset=utf-8") for body in SPACES],
    [post(body, host="elsewhere") for body in SPACES],
    [post(body, traceparent=TRACE) for body in SPACES],
    [post(body, traceparent=OTHER_TRACE) for body in SPACES],
    [post(body, target="/v1/responses/input_tokens") for body in SPACES],
    [post(body, Content_Encoding="gzip") for body in SPACES],
]


async def test_what_follows_from_a_head_is_that_of_the_last_one_only(gateway: str, upstream: FakeUpstream):
    """Clients that alternate are answered as those that have a connection for each request, with bodies of any length."""
    requests = [*chain(*OF_ONE_CLIENT), *chain(*zip(*OF_ONE_CLIENT, strict=True)), *OF_ONE_CLIENT[4]]
    alone = [(await ask(gateway, request)).status for request in requests]
    sent_alone = [(each.target, seen(each.headers)) for each in upstream.requests]
    upstream.requests.clear()
    async with wire(gateway) as connection:
        statuses = list[int]()
        for sent in (*requests[:-3], b"".join(requests[-3:])):  # what is pipelined follows another head
            await connection.send(sent)
            statuses += [(await connection.answer()).status for _ in range(sent.count(b"POST"))]

    assert statuses == alone
    assert {*statuses} == {200, 400, 404, 415, 421}
    assert [(each.target, seen(each.headers)) for each in upstream.requests] == sent_alone


def seen(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of an upstream's request without those that differ from one to the next."""
    return {name.lower(): value for name, value in headers.items() if name.lower() != "content-length"}
