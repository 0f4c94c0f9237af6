"""Requests for a WebSocket: which are granted, and which are refused before the upgrade."""

import hashlib

import aiohttp
import pytest

from backends.upstream import Upstream
from proxy.app import running
from proxy.config.build import build
from proxy.wire.upgrade import accept_key
from tests.conftest import tables_for
from tests.raw import ask, no_tasks_left, post, until, wire  # noqa: F401
from tests.sockets import KEY, calling, frames_in, masked, upgrade
from tests.upstream import FakeUpstream

KEYS = {"anna": "sk-anna-1", "ben": "sk-ben-1"}


def callers() -> list[dict[str, str]]:
    return [{"name": name, "key_sha256": hashlib.sha256(key.encode()).hexdigest()} for name, key in KEYS.items()]


def test_the_accepted_key_is_that_of_the_standard():
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


async def test_an_upgrade_is_granted(gateway: str):
    """The answer has the id of the connection's log line, and neither a length nor a body."""
    async with wire(gateway) as connection:
        await connection.send(upgrade())
        answer = await connection.answer()

    assert answer.status == 101
    assert answer.headers["sec-websocket-accept"] == accept_key(KEY)
    assert (answer.headers["connection"], answer.headers["upgrade"]) == ("Upgrade", "websocket")
    assert answer.headers["x-request-id"].startswith("req_")
    assert not {"content-length", "content-type", "transfer-encoding", "sec-websocket-extensions"} & {*answer.headers}


async def test_frames_that_follow_the_upgrade_at_once_are_read(gateway: str):
    async with wire(gateway) as connection:
        await connection.send(upgrade() + masked(9, b"?"))
        await connection.answer()
        await connection.send(masked(8))

        assert await connection.rest() == b"\x8a\x01?\x88\x00"


REFUSED = {
    "no version": upgrade().replace(b"Sec-WebSocket-Version: 13\r\n", b""),
    "another version": upgrade(version="8"),
    "no key": upgrade().replace(f"Sec-WebSocket-Key: {KEY}\r\n".encode(), b""),
    "two keys": upgrade(f"Sec-WebSocket-Key: {KEY}"),
    "a short key": upgrade(key="abc"),
    "no connection": upgrade().replace(b"keep-alive, Upgrade", b"keep-alive"),
    "HTTP/1.0": upgrade().replace(b"HTTP/1.1", b"HTTP/1.0"),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
async def test_what_is_no_upgrade_of_the_protocol_is_refused(gateway: str, data: bytes):
    """After a 426 in the envelope agents fall back to POST immediately."""
    answer = await ask(gateway, data)

    assert (answer.status, answer.headers.get("connection", "close")) == (426, "close")
    assert (answer.headers["upgrade"], answer.headers["sec-websocket-version"]) == ("websocket", "13")
    assert "upgrade" in answer.error["message"]


async def test_a_gateway_can_refuse_all(start_gateway, upstream: FakeUpstream):
    """With a limit of 0; the answer names the way that is left."""
    gateway = await start_gateway(tables_for(upstream, server={"websockets_per_caller": 0}))
    answer = await ask(gateway, upgrade())

    assert (answer.status, answer.headers["connection"]) == (426, "close")
    assert "POST /v1/responses" in answer.error["message"]
    assert answer.headers["x-should-retry"] == "false"


async def test_an_upgrade_with_a_body_is_refused(gateway: str, upstream: FakeUpstream):
    """CVE-2026-69243: two readers could see a message or a request in it."""
    body = post(b'{"model":"smuggled"}')
    async with wire(gateway) as connection:
        await connection.send(upgrade(f"Content-Length: {len(body)}") + body)
        answer = await connection.answer()

        assert (answer.status, await connection.rest()) == (400, b"")
    assert upstream.requests == []


async def test_other_requests_for_the_path_are_no_upgrades(gateway: str):
    answer = await ask(gateway, b"GET /v1/responses HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert b"only opens a WebSocket" in answer.body


@pytest.mark.parametrize("header", ["Origin: https://evil.example", "Sec-Fetch-Site: cross-site"])
async def test_a_page_of_another_site_cannot_drive_an_open_gateway(gateway: str, header: str):
    answer = await ask(gateway, upgrade(header))

    assert (answer.status, answer.error["code"]) == (403, "cross_site_request")


async def test_a_key_is_needed(start_gateway, upstream: FakeUpstream, logged):
    gateway = await start_gateway(tables_for(upstream, caller=callers()))
    refused = await ask(gateway, upgrade("Authorization: Bearer sk-wrong"))
    async with calling(gateway, authorization="Bearer sk-anna-1") as caller:
        assert (await caller.ask())["type"] == "response.completed"

    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
    assert [line["caller"] for line in logged if line["event"] == "request.finished" and line["status"] == 200] == [
        "anna"
    ]


async def test_each_caller_has_a_limit_of_connections(start_gateway, upstream: FakeUpstream):
    """Another caller has its own; a connection that has ended does not count."""
    gateway = await start_gateway(tables_for(upstream, caller=callers(), server={"websockets_per_caller": 2}))
    anna, ben = (f"Bearer {key}" for key in KEYS.values())
    async with calling(gateway, authorization=anna) as first, calling(gateway, authorization=anna):
        refused = await ask(gateway, upgrade(f"Authorization: {anna}"))
        async with calling(gateway, authorization=ben) as other:
            assert (await other.ask())["type"] == "response.completed"
        await first.socket.close()
        await _connects(gateway, anna)

    assert (refused.status, refused.error["code"], refused.error["type"]) == (429, "too_many_connections", "requests")


async def _connects(gateway: str, authorization: str) -> None:
    """Connect as soon as the gateway has noticed that another connection has ended."""
    while True:
        try:
            async with calling(gateway, authorization=authorization) as caller:
                assert (await caller.ask())["type"] == "response.completed"
        except aiohttp.WSServerHandshakeError:
            continue
        return


async def test_only_get_upgrades(gateway: str):
    async with wire(gateway) as connection:
        await connection.send(upgrade().replace(b"GET", b"HEAD"))

        assert b" 426 " in await connection.line()


async def test_a_gateway_whose_backends_create_no_responses_refuses_all(start_gateway, upstream: FakeUpstream):
    """Before the upgrade."""

    class Counting(Upstream):
        operations = frozenset({"input_tokens"})

    config = build(tables_for(upstream, server={"port": 0, "drain_s": 0}))
    route = config.routes[0]
    counting = Counting.model_validate(route.targets[0].model_dump())
    backends = {counting.name: counting}
    changed = config.model_copy(update={"routes": [route.narrowed_to([counting])], "backends": backends})
    async with running(changed) as gateway:
        answer = await ask(gateway, upgrade())

    assert (answer.status, answer.headers["connection"]) == (426, "close")
    assert "POST /v1/responses" in answer.error["message"]


async def test_compression_is_not_negotiated(gateway: str):
    """A few bytes could become a message of any size; a frame that is compressed anyway ends the connection."""
    async with wire(gateway) as connection:
        await connection.send(upgrade("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"))
        answer = await connection.answer()
        await connection.send(masked(1 | 0x40, b"\xaa\x56\x2a\xa9\x2c\x48\x55\xb2\x52\x50\x02\x00"))

        (opcode, payload), *_ = frames_in(await connection.rest())

    assert (opcode, payload[:2]) == (0x88, (1002).to_bytes(2))
    assert (answer.status, "sec-websocket-extensions" in answer.headers) == (101, False)


async def test_keys_in_sub_protocols_are_not_read(start_gateway, upstream: FakeUpstream, logged):
    """A page could hold only a key that every visitor can read. None is selected, logged or sent on."""
    gateway = await start_gateway(tables_for(upstream, caller=callers()))
    offered = f"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.{KEYS['anna']}"
    refused = await ask(gateway, upgrade(offered))
    async with wire(gateway) as connection:
        await connection.send(upgrade(offered, f"Authorization: Bearer {KEYS['anna']}"))
        answer = await connection.answer()

    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
    assert (answer.status, "sec-websocket-protocol" in answer.headers) == (101, False)
    assert KEYS["anna"] not in str(logged)


SMUGGLED = post(b'{"model":"smuggled"}')
AMBIGUOUS = {
    "chunked": (upgrade("Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n", 400),
    "a length of zero and a request": (upgrade("Content-Length: 0") + SMUGGLED, 101),
    "two lengths": (upgrade("Content-Length: 0", f"Content-Length: {len(SMUGGLED)}") + SMUGGLED, 400),
    "two upgrades": (upgrade("Upgrade: h2c") + SMUGGLED, 405),
    "a list of upgrades": (upgrade().replace(b"Upgrade: WebSocket", b"Upgrade: h2c, websocket") + SMUGGLED, 405),
    "another upgrade": (upgrade().replace(b"Upgrade: WebSocket", b"Upgrade: h2c") + SMUGGLED, 405),
    "two connections": (upgrade("Connection: close") + SMUGGLED, 101),
    "no version": (upgrade().replace(b"Sec-WebSocket-Version: 13\r\n", b"") + SMUGGLED, 426),
}


@pytest.mark.parametrize(("data", "status"), AMBIGUOUS.values(), ids=AMBIGUOUS)
async def test_what_follows_an_upgrade_is_never_a_request(gateway: str, upstream: FakeUpstream, data, status: int):
    """Granted, it is frames; refused, the connection ends."""
    async with wire(gateway) as connection:
        await connection.send(data)
        answer = await connection.answer()
        rest = await connection.rest()

    assert answer.status == status
    assert b"HTTP/1.1" not in rest
    assert upstream.requests == []
