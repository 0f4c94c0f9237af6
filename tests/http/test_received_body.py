"""A body that has arrived with its head is read as any other."""

import pytest
from aiohttp.test_utils import make_mocked_request

from proxy.http.received_body import ReceivedBody


def test_a_received_body_is_read_once():
    """All of it or a part; then it is empty."""
    body = ReceivedBody(b"abcdef")

    assert (body.total_bytes, body.is_eof(), body.at_eof()) == (6, True, False)
    assert [body.read_nowait(4), body.read_nowait(), body.read_nowait()] == [b"abcd", b"ef", b""]
    assert body.at_eof()


async def test_a_received_body_is_not_awaited():
    """Nothing can fail it any more."""
    body = ReceivedBody(b"abcdef")
    body.set_exception(ConnectionResetError())
    await body.wait_eof()

    assert [await body.read(2), await body.readany(), await body.readany()] == [b"ab", b"cdef", b""]
    assert body.exception() is None


async def test_requests_of_aiohttp_read_it():
    """Those of the admin API are read so."""
    request = make_mocked_request("POST", "/", payload=ReceivedBody(b'{"a":1}'), client_max_size=10)
    unread = make_mocked_request("POST", "/", payload=ReceivedBody(b'{"a":1}'))
    await unread.release()

    assert (request.body_exists, request.can_read_body, await request.json()) == (True, True, {"a": 1})
    assert not unread.can_read_body


async def test_other_ways_of_reading_fail():
    """None returns too little."""
    with pytest.raises(AttributeError):
        await ReceivedBody(b"a").readline()
