"""Regression tests for attacks on a whole gateway that once succeeded."""

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import orjson
import pytest
from aiohttp import web

from tests.conftest import StartGateway, tables_for
from tests.upstream import FakeUpstream, streaming

CREATED = b'data: {"type":"response.created","response":{"id":"resp_1","status":"in_progress","output":[]}}\n\n'
SURROGATE = rb'"text":"cut \ud83d"'


def json_answer(response: dict) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return an upstream's answer that is always this one JSON body."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=orjson.dumps(response), content_type="application/json")

    return answer


async def post(http: aiohttp.ClientSession, address: str, **fields: object) -> tuple[int, bytes]:
    async with http.post(f"{address}/v1/responses", json={"model": "m", "input": "x", **fields}) as answer:
        return answer.status, await answer.read()


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_of_very_many_items_is_refused(gateway: str, upstream: FakeUpstream, http, stream: bool):
    """Composing or checking them took quadratic time on the event loop."""
    upstream.answer = json_answer({"id": "r", "object": "response", "status": "completed", "output": [{}] * 100_000})
    status, body = await post(http, gateway, stream=stream)

    assert (status, orjson.loads(body)["error"]["code"]) == (502, "upstream_too_large")


async def test_many_items_are_converted_in_linear_time(gateway: str, upstream: FakeUpstream, http):
    """The answer has as many items as are allowed."""
    upstream.answer = json_answer({"id": "r", "object": "response", "status": "completed", "output": [{}] * 10_000})
    async with asyncio.timeout(25):
        status, body = await post(http, gateway, stream=True)

    assert status == 200
    assert body.count(b"response.output_item.done") >= 10_000


async def test_an_open_item_of_many_deltas_is_closed_in_linear_time(gateway: str, upstream: FakeUpstream, http):
    """Each delta used to copy the text so far."""
    added = b'data: {"type":"response.output_item.added","output_index":0,"item":{"type":"message","content":[]}}\n\n'
    delta = b'data: {"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":"%b"}\n\n' % (
        b"x" * 100
    )
    upstream.answer = streaming(CREATED + added, *[delta * 1_000] * 40)
    async with asyncio.timeout(25):
        status, body = await post(http, gateway, stream=True)

    assert status == 200
    assert b'"status":"incomplete"' in body
    assert b"x" * 4_000_000 in body.rpartition(b"response.output_item.done")[2]


async def test_a_frame_of_very_many_values_ends_the_stream(gateway: str, upstream: FakeUpstream, http):
    """Parsing it would delay every other call."""
    values = b"[]," * 300_000
    terminal = b'data: {"type":"response.completed","response":{"id":"resp_1","output":[%b[]]}}\n\n' % values
    upstream.answer = streaming(CREATED, terminal)
    status, body = await post(http, gateway, stream=True)

    assert status == 200
    assert b'"code":"upstream_invalid_response"' in body
    assert b"response.completed" not in body


async def test_a_flood_of_sentinels_delays_no_other_call(gateway: str, upstream: FakeUpstream, http):
    """Other calls run between two pieces of a stream."""
    answered = asyncio.Event()

    async def flood(response: web.StreamResponse) -> None:
        while not answered.is_set():
            await response.write(b"data: [DONE]\n\n" * 4_000)

    upstream.answer = streaming(CREATED, then=flood)
    flooded = asyncio.create_task(post(http, gateway, stream=True))
    await upstream.arrived.wait()
    async with http.get(f"{gateway}/healthz") as answer:
        assert answer.status == 200
    answered.set()

    assert b"response.failed" in (await flooded)[1]


@pytest.mark.parametrize("text", [SURROGATE, b'"text":"x","logprob":NaN', b'"text":"\xff"', b'"text":"a\tb"'])
async def test_events_that_are_not_strictly_valid_are_counted_and_forwarded(
    start_gateway: StartGateway, upstream: FakeUpstream, http, text: bytes
):
    """Clients accept such JSON, so the gateway reads it too: budgets apply to it, and regular streams are unchanged."""
    policy = [{"use": "max_tool_calls", "max": 2}]
    gateway = await start_gateway(tables_for(upstream, policy=policy))
    done = b'data: {"type":"response.output_item.done","output_index":%d,"item":{"id":"w%d","type":"web_search_call",%b}}\n\n'
    completed = (
        b'data: {"type":"response.completed","response":{"id":"resp_1","status":"completed","output":[],%b}}\n\n' % text
    )
    upstream.answer = streaming(CREATED, *[done % (i, i, text) for i in range(6)], completed)
    _, stopped = await post(http, gateway, stream=True)
    upstream.answer = streaming(CREATED, completed)
    _, whole = await post(http, gateway, stream=True)

    assert (stopped.count(b"output_item.done"), b"response.incomplete" in stopped) == (2, True)
    assert (completed in whole, b"response.failed" in whole) == (True, False)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_item_that_is_nested_too_deeply_does_not_break_the_end(
    gateway: str, upstream: FakeUpstream, http, stream
):
    """The stream still gets its end events, without that item."""
    deep = b"[" * 253 + b"]" * 253
    done = (
        b'data: {"type":"response.output_item.done","output_index":0,"item":{"id":"m","type":"x","deep":%b}}\n\n' % deep
    )
    upstream.answer = streaming(CREATED, done)
    status, body = await post(http, gateway, stream=stream)

    assert status == (200 if stream else 502)
    assert (b"response.failed" in body) is stream


@pytest.mark.parametrize(
    "headers", [{"Content-Encoding": "\udcff"}, {"OpenAI-Beta": "caf\udce9"}], ids=["coding", "beta"]
)
async def test_a_header_that_is_not_utf_8_causes_no_crash(
    gateway: str, upstream: FakeUpstream, headers: dict[str, str]
):
    """Servers read such bytes as lone surrogates, which JSON cannot encode."""
    host, port = gateway.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = b'{"model":"m","prompt_cache_key":"k"}'
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode(errors="surrogateescape")
    head = b"POST /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(head + lines + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    answer = await reader.read()
    writer.close()

    assert answer.split(b" ")[1] in (b"200", b"415", b"400")


@pytest.mark.parametrize(
    "name", ["Location", "Via", "X-Envoy-Upstream-Host", "Access-Control-Allow-Origin", "X-Headgate-Ignored"]
)
async def test_headers_about_the_upstream_itself_are_not_forwarded(
    gateway: str, upstream: FakeUpstream, http, name: str
):
    """They reveal addresses, instruct browsers, or forge headers of the gateway."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response({"id": "r", "output": []}, headers={name: "http://10.0.0.1/"})

    upstream.answer = answer
    async with http.post(f"{gateway}/v1/responses", json={"model": "m"}) as received:
        assert name not in received.headers
