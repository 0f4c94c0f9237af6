"""Large bodies and answers do not delay the small requests of other clients."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest

from proxy.http.pieces import pieces_of
from tests.conftest import tables_for
from tests.loop_work import LoopWork, observed_loop
from tests.raw import ask, no_tasks_left, post, serves, until, wire  # noqa: F401
from tests.sockets import masked, upgrade
from tests.upstream import FakeUpstream, final_body

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
# How many functions of the gateway one step of the event loop may call. A small request takes about 400 under all
# policies, and a walk through a large body takes thousands.
MOST_CALLS = 2000
ALL_POLICIES = [
    {"use": "models"},
    {"use": "metadata_limits"},
    {"use": "include", "deny": ["reasoning.encrypted_content"]},
    {"use": "tools", "deny_types": ["computer_use_preview"]},
    {"use": "max_tool_calls", "max": 8},
    {"use": "output_tokens", "max": 4096},
    {"use": "service_tier", "allow": ["auto", "default"]},
    {"use": "size", "max_items": 100_000, "max_text_chars": 100_000_000},
    {"use": "retention"},
    {"use": "input_urls", "deny_hosts": ["*.internal"]},
    {"use": "safety_identifier", "pii": "reject"},
]


async def accept(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
    """Answer without parsing the request: the upstream shares the event loop with the gateway under test."""
    return aiohttp.web.Response(body=final_body(), content_type="application/json")


@asynccontextmanager
async def small_requests(address: str, *, threads: bool) -> AsyncIterator[LoopWork]:
    """Send small requests of another client, one by one, and observe the event loop while the `with` block runs.

    Check that some are answered, and that no step of the loop works on a large text or takes many calls.
    """
    answered = 0

    async def send() -> None:
        nonlocal answered
        async with wire(address) as connection:
            while True:
                await connection.send(HEALTH)
                assert (await connection.answer()).status == 200
                answered += 1

    sending = asyncio.create_task(send())
    await until(lambda: answered > 0)
    before = answered
    try:
        with observed_loop(threads=threads) as work:
            yield work
    finally:
        sending.cancel()
        (result,) = await asyncio.gather(sending, return_exceptions=True)
    assert isinstance(result, asyncio.CancelledError)
    assert answered > before
    assert work.on_loop == set()
    assert work.decompressions <= 1  # the first step, which is small
    assert work.most_calls < MOST_CALLS


def compressed(*parts: tuple[bytes, int]) -> bytes:
    """Return these parts, each repeated, as gzip."""
    compressor = zlib.compressobj(wbits=31)
    pieces = [compressor.compress(part * 1000) for part, count in parts for _ in range(max(1, count // 1000))]
    return b"".join(pieces) + compressor.flush()


def conversation(size: int) -> bytes:
    """Return a long conversation with tools, as agents send it."""
    text = 'The quick brown fox said "jump: over" [the] {lazy}, dog; then https://example.org/a?b=c. ' * 20
    turn = [
        {"role": "user", "content": [{"type": "input_text", "text": text}]},
        {"type": "function_call", "call_id": "c", "name": "read", "arguments": '{"path": "a, b", "lines": [1, 2]}'},
        {"type": "function_call_output", "call_id": "c", "output": text},
        {"role": "assistant", "content": [{"type": "output_text", "text": text, "annotations": []}]},
    ]
    tools = [{"type": "function", "name": "read", "parameters": {"type": "object"}}, {"type": "web_search"}]
    body = {"model": "m", "input": turn * (size // len(orjson.dumps(turn))), "tools": tools, "max_output_tokens": 99}
    return orjson.dumps(body)


LARGE = {
    "117 KB of gzip with 120 MB of arrays": (
        lambda: compressed((b'{"model":"m","input":[', 1), (b"[],", 40_000_000)), {"content_encoding": "gzip"}, 413,
    ),
    "30 MB of arrays": (lambda: b'{"model":"m","input":[' + b"[]," * 10_000_000 + b"[]]}", {}, 400),
    "6 MB with one escaped colon": (
        lambda: b'{"model":"m","input":"\\u003a%b"}' % (b"a:b," * 4_000_000), {}, 200,
    ),
    "an array of as many values as are allowed": (
        lambda: b'{"model":"m","input":[%b0]}' % (b"[]," * 99_000), {}, 200,
    ),
    "a string of 10 MB of quotes": (lambda: b'{"model":"m","input":"%b"}' % (b'\\"' * 5_000_000), {}, 200),
}  # fmt: skip


@pytest.mark.parametrize(("make", "headers", "status"), LARGE.values(), ids=LARGE)
async def test_small_requests_are_answered_beside_a_large_body(
    start_gateway, upstream: FakeUpstream, logged, make: Callable[[], bytes], headers: dict[str, str], status: int
):
    """The content of the large body makes no difference."""
    upstream.answer = accept
    gateway = await start_gateway(tables_for(upstream))
    data = post(make(), **headers)
    async with small_requests(gateway, threads=status != 200) as work:
        answer = await ask(gateway, data)

    assert answer.status == status
    assert "loads" not in work.in_threads  # a body that is refused was not parsed


@pytest.mark.parametrize("stream", [False, True])
async def test_small_requests_are_answered_beside_a_long_conversation(start_gateway, upstream, logged, stream: bool):
    """4 MB pass through all policies and to the upstream."""
    upstream.answer = accept
    gateway = await start_gateway(tables_for(upstream, policy=ALL_POLICIES))
    body = conversation(8_000_000)
    data = post(body[:-1] + b',"stream":%b}' % str(stream).lower().encode())
    async with small_requests(gateway, threads=False):
        answer = await ask(gateway, data)

    assert answer.status == 200
    assert len(upstream.requests[0].body["input"]) == len(orjson.loads(body)["input"])


MESSAGE = b'{"type":"message","id":"m","role":"assistant","content":[{"type":"output_text","text":"%b"}]}'


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("output", "status"),
    [(b"[]," * 5_000_000 + b"[]", 502), (MESSAGE % (b"a" * 15_000_000), 200)],
    ids=["arrays", "text"],
)
async def test_small_requests_are_answered_beside_a_large_answer(
    gateway: str, upstream: FakeUpstream, logged, output: bytes, status: int, *, stream: bool
):
    """The upstream sends 5 MB of JSON; an answer with too many values is refused before it is parsed.

    As a stream its text is five times as long.
    """

    async def answer(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        response = aiohttp.web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for piece in pieces_of([b'{"id":"resp_1","output":[%b]}' % output]):
            await response.write(piece)
        return response

    upstream.answer = answer
    async with small_requests(gateway, threads=status != 200) as work:
        received = await ask(gateway, post(b'{"model":"m","stream":%b}' % str(stream).lower().encode()))

    assert received.status == status
    assert status == 200 or received.error["code"] == "upstream_invalid_response"
    assert "loads" not in work.in_threads  # an answer that is refused was not parsed


@pytest.mark.parametrize("answers_stream", [False, True])
async def test_small_requests_are_answered_beside_a_large_answer_that_is_kept(
    start_gateway, upstream: FakeUpstream, logged, *, answers_stream: bool
):
    """Its tokens are estimated, and it is written and read; a stream may have it in its last event only."""
    response = b'{"id":"resp_1","object":"response","status":"completed","output":[%b]}' % (
        MESSAGE % (b"a" * 12_000_000)
    )
    last = b'event: response.completed\ndata: {"type":"response.completed","response":%b}\n\n' % response

    async def answer(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        kind = "text/event-stream" if answers_stream else "application/json"
        sent = aiohttp.web.StreamResponse(headers={"Content-Type": kind})
        await sent.prepare(request)
        for piece in pieces_of([last if answers_stream else response]):
            await sent.write(piece)
        return sent

    upstream.answer = answer
    backend = {"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1", "keeps_state": False}
    gateway = await start_gateway(tables_for(upstream, backend=[backend]))
    async with small_requests(gateway, threads=False):
        created = await ask(gateway, post(b'{"model":"m"}'))
        read = await ask(gateway, b"GET /v1/responses/resp_1 HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert [answer.status for answer in (created, read)] == [200] * 2
    assert min(len(created.body), len(read.body)) > 12_000_000


async def test_small_requests_are_answered_beside_large_items_of_a_conversation(
    start_gateway, upstream: FakeUpstream, logged
):
    """The gateway keeps them itself: they are measured, written, read and shown."""
    backend = {"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1", "keeps_state": False}
    gateway = await start_gateway(tables_for(upstream, backend=[backend]))
    item = b'{"type":"message","id":"msg_%d","role":"user","content":"' + b"a" * 12_000_000 + b'"}'
    async with small_requests(gateway, threads=False):
        created = await ask(gateway, post(b'{"items":[%b]}' % (item % 1), target="/v1/conversations"))
        path = f"/v1/conversations/{orjson.loads(created.body)['id']}/items"
        added = await ask(gateway, post(b'{"items":[%b]}' % (item % 2), target=path))
        read = await ask(gateway, f"GET {path}/msg_2 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    assert [answer.status for answer in (created, added, read)] == [200] * 3
    assert orjson.loads(read.body)["id"] == "msg_2"
    assert min(len(added.body), len(read.body)) > 12_000_000


async def test_small_requests_are_answered_beside_a_long_list_of_a_relay(start_gateway, upstream: FakeUpstream, logged):
    """The owner of each object is looked up, in a store that answers at once."""
    body = b'{"object":"list","data":[%b]}' % b",".join(b'{"id":"file-%05d"}' % number for number in range(2_000))

    async def answer(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        return aiohttp.web.Response(body=body, content_type="application/json")

    upstream.answer = answer
    gateway = await start_gateway(tables_for(upstream, relay=[{"path": "/v1/files", "backend": "fake"}]))
    async with small_requests(gateway, threads=False):
        listed = await ask(gateway, b"GET /v1/files HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert (listed.status, len(orjson.loads(listed.body)["data"])) == (200, 2_000)


async def test_small_requests_are_answered_between_messages_of_a_websocket(gateway: str, logged):
    """All of them have arrived, in one lane, and each is refused."""
    count = 64
    flood = b"".join(masked(1, b'{"type":"x"}') for _ in range(count))
    async with small_requests(gateway, threads=False), wire(gateway) as connection:
        await connection.send(upgrade() + flood)
        received = b""
        while received.count(b'"status":400') < count:
            received += await connection.some()

    assert received.count(b'"status":') == count


async def test_small_requests_are_answered_beside_a_history_of_many_items(start_gateway, upstream, logged):
    """Their ids follow from their positions; a page of them is shown, and the history is continued."""
    backend = {"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1", "keeps_state": False}
    gateway = await start_gateway(tables_for(upstream, backend=[backend]))
    item = b'{"role":"user","content":"Hi"}'
    async with small_requests(gateway, threads=False):
        created = await ask(gateway, post(b'{"model":"m","input":[%b]}' % b",".join([item] * 3_000)))
        name = orjson.loads(created.body)["id"]
        head = f"GET /v1/responses/{name}/input_items HTTP/1.1\r\nHost: localhost\r\n\r\n"
        page = await ask(gateway, head.encode())
        result = b'{"type":"function_call_output","call_id":"call_0001","output":"4"}'
        more = b'{"model":"m","input":[%b],"previous_response_id":"%b"}' % (result, name.encode())
        continued = await ask(gateway, post(more))

    assert [answer.status for answer in (created, page, continued)] == [200] * 3
    assert orjson.loads(page.body)["has_more"]
    assert len(upstream.requests[-1].body["input"]) > 3_000


async def test_small_requests_are_answered_beside_a_large_response_in_the_background(
    start_gateway, upstream: FakeUpstream, state_table: dict[str, Any], logged, monkeypatch: pytest.MonkeyPatch
):
    """Its events repeat the text five times; they are sealed, written, read and sent."""
    text = b"a" * 3_000_000

    async def answer(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        body = b'{"id":"resp_1","object":"response","status":"completed","output":[%b]}' % (MESSAGE % text)
        return aiohttp.web.Response(body=body, content_type="application/json")

    upstream.answer = answer
    backend = {"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1", "keeps_state": False}
    monkeypatch.setenv("STATE_SECRET", "a secret of more than 32 characters.")
    state = state_table | {"secret": "env:STATE_SECRET"}
    gateway = await start_gateway(tables_for(upstream, backend=[backend], state=state, cache=None))
    async with small_requests(gateway, threads=False):
        created = await ask(gateway, post(b'{"model":"m","background":true}'))
        name = orjson.loads(created.body)["id"]
        get = "GET /v1/responses/{}{} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        followed = await ask(gateway, get.format(name, "?stream=true").encode())
        read = await ask(gateway, get.format(name, "").encode())

    assert [answer.status for answer in (created, followed, read)] == [200] * 3
    assert (followed.body.count(text), read.body.count(text)) == (5, 1)
