"""Requests that no route repeats: which failures they survive, by the transport and over the gateway."""

from collections.abc import Callable
from typing import Any

import pytest

from backends.upstream.errors import connect_timed_out, files_exhausted, timed_out, unreachable, was_reset
from backends.upstream.retry import send_with_retry
from proxy.wire.errors import BackendError
from tests.conftest import StartGateway
from tests.examples import make_context
from tests.raw import RawUpstream, ask, no_tasks_left, playing, post, whole  # noqa: F401

JSON = "Content-Type: application/json"
LIST = whole(b'{"object":"list","data":[{"id":"file-1","object":"file"}]}', JSON)
GET, POST = "GET", "POST"


@pytest.mark.parametrize(
    ("failure", "repeated"),
    [
        (lambda: unreachable("connection refused"), {GET, POST}),
        (lambda: connect_timed_out(5), {GET, POST}),
        (was_reset, {GET}),
        (lambda: unreachable("TLS", retryable=False), set()),
        (lambda: timed_out(5), set()),
        (files_exhausted, set()),
    ],
)
@pytest.mark.parametrize("method", [GET, POST])
async def test_what_is_safe_is_asked_again(
    failure: Callable[[], BackendError], repeated: set[str], method: str, monkeypatch, logged
):  # fmt: skip
    """Once; the second failure is that of the request."""
    monkeypatch.setattr("backends.upstream.retry.LONGEST_PAUSE_S", 0)
    context, left = make_context(), [failure(), failure()]

    async def asked() -> Any:
        raise left.pop()

    with pytest.raises(BackendError):
        await send_with_retry(asked, method, "it", context)
    assert len(left) == (0 if method in repeated else 1)
    assert context.record.attempts == (2 if method in repeated else None)
    retried = [("backend.retried", failure().status, context.request_id)] * (method in repeated)
    assert [(line["event"], line["status"], line["request_id"]) for line in logged] == retried


@pytest.mark.parametrize(
    ("request_", "received"),
    [
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", 2),
        (b"GET /v1/files HTTP/1.1\r\nHost: localhost\r\n\r\n", 2),
        (b"GET /v1/responses/resp_1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 2),
        (post(b"{}", target="/v1/files"), 1),
        (b"DELETE /v1/responses/resp_1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 1),
    ],
    ids=["models", "a relayed GET", "a response", "a relayed POST", "a deletion"],
)
async def test_a_broken_connection_is_seen_only_where_something_may_have_changed(
    start_gateway: StartGateway, request_: bytes, received: int
):
    """A GET is sent on another connection."""
    async with RawUpstream(playing(end="close")) as upstream:

        async def play(reader: Any, writer: Any) -> None:
            upstream.play = playing(LIST)
            await playing(end="close")(reader, writer)

        upstream.play = play
        backend = {"use": "upstream", "name": "it", "base_url": f"{upstream.address}/v1", "keeps_state": True}
        relay, route = {"path": "/v1/files", "backend": "it"}, {"model": "*", "backend": "it"}
        address = await start_gateway({"backend": [backend], "route": [route], "relay": [relay]})
        answer = await ask(address, request_)

        assert answer.status == (200 if received == 2 else 502)
        assert len(upstream.requests) == received
