"""Bodies that an upstream receives while they are received from a client."""

from collections.abc import AsyncIterator

import pytest

from backends.upstream.http1 import BodySource
from tests.raw import RawUpstream, no_tasks_left, playing, until, whole, wire  # noqa: F401

JSON = "Content-Type: application/json"


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@pytest.mark.parametrize(
    ("size", "framing", "sent"),
    [
        (None, b"Transfer-Encoding: chunked\r\n", b"2\r\nab\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n"),
        (18, b"Content-Length: 18\r\n", b"ab0123456789abcdef"),
    ],
)
async def test_a_body_is_framed_by_its_size(size: int | None, framing: bytes, sent: bytes):
    """One of an unknown size is sent in chunks."""
    source = BodySource(pieces(b"ab", b"0123456789abcdef"), size)

    assert source.framing == framing
    assert b"".join([piece async for piece in source.frames()]) == sent


async def test_an_empty_body_of_unknown_size_ends_at_once():
    assert [piece async for piece in BodySource(pieces()).frames()] == [b"0\r\n\r\n"]


async def test_an_upstream_may_answer_before_it_has_the_whole_body(start_gateway):
    """Its answer is passed on with the next chunk, and no other request uses its connection."""
    refusal = whole(b'{"error":{"message":"too large","code":"file_too_large"}}', JSON, status="413 Too Large")
    async with RawUpstream(playing(refusal)) as upstream:
        gateway = await start_gateway({
            "backend": [{"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1"}],
            "route": [{"model": "*", "backend": "fake"}],
            "relay": [{"path": "/v1/files", "backend": "fake"}],
        })  # fmt: skip
        head = b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
        async with wire(gateway) as connection:
            await connection.send(head + b"2\r\nab\r\n")
            await until(lambda: len(upstream.requests) == 1)
            await connection.send(b"2\r\ncd\r\n")
            answer = await connection.answer()
        async with wire(gateway) as connection:
            await connection.send(b"GET /v1/files HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await connection.answer()

        assert (answer.status, upstream.opened) == (413, 2)
        assert b'"file_too_large"' in answer.body
