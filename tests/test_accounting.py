"""The tokens in the log line of a call, for every end of it and on each way in: no token is missing, none is there twice.

The upstream's canonical response says 5 and 7; the estimates are those of "Hello there" and of "Think.".
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
import pytest

from proxy.accounting import complete_record
from proxy.wire.token_estimate import estimate_input, estimate_tokens
from proxy.workers import LARGE_BYTES, Workers
from tests.conftest import StartGateway, tables_for
from tests.examples import make_call, make_context
from tests.raw import until
from tests.sockets import calling
from tests.upstream import CANONICAL, Answer, FakeUpstream, hang, streaming

TOKENS = (
    "input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens", "saved_input_tokens",
    "saved_output_tokens", "estimated",
)  # fmt: skip
BODY = {"model": "m", "input": "Hello there"}
SENT = {"input_tokens": 5, "output_tokens": 7, "cached_tokens": 0, "cache_write_tokens": 0, "reasoning_tokens": 2}
KEY = {"prompt_cache_key": "k"}
SAVED = {"saved_input_tokens": 5, "saved_output_tokens": 7}
BEGUN = CANONICAL[: CANONICAL.index(b"response.output_text.delta")].rpartition(b"\n\n")[0] + b"\n\n"
ESTIMATED = {"input_tokens": 3, "output_tokens": 2, "estimated": True}
ASKED = {"input_tokens": 3, "output_tokens": 0, "estimated": True}
NO_USAGE = CANONICAL.replace(
    b'"usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":0,"cache_write_tokens":0},"output_tokens":7,'
    b'"output_tokens_details":{"reasoning_tokens":2},"total_tokens":12}', b'"usage":null',
)  # fmt: skip


@dataclass
class Ways:
    """The ways on which a call comes to a gateway."""

    http: aiohttp.ClientSession
    gateway: str
    upstream: FakeUpstream

    async def json(self, body: dict[str, Any]) -> None:
        async with self.http.post(f"{self.gateway}/v1/responses", json=BODY | body) as answer:
            await answer.read()

    async def stream(self, body: dict[str, Any]) -> None:
        await self.json({"stream": True} | body)

    async def websocket(self, body: dict[str, Any]) -> None:
        async with calling(self.gateway) as caller:
            await caller.turn_of(**BODY | body)

    async def background(self, body: dict[str, Any]) -> None:
        await self.json({"background": True, "store": True} | body)


def lines_of(logged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the token fields of each call that has ended."""
    ends = [line for line in logged if line["event"] in ("request.finished", "background.finished", "cache.refreshed")]
    return [
        {name: line[name] for name in TOKENS if name in line}
        for line in ends
        if "model" in line and line.get("finish_reason") != "queued"
    ]


def answering(stream: bytes = CANONICAL, then: Any = None) -> Answer:
    """Return an answer of this stream, or of the body that is its last event."""

    async def answer(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        if orjson.loads(await request.read()).get("stream"):
            return await streaming(stream, then=then)(request)
        last = next(line for line in reversed(stream.splitlines()) if b'"response":' in line)
        return aiohttp.web.json_response(orjson.loads(last[6:])["response"])

    return answer


async def refusing(_: object) -> aiohttp.web.Response:
    return aiohttp.web.json_response({"error": {"message": "no", "code": "c", "type": "t", "param": None}}, status=400)


@pytest.fixture
async def ways(http, start_gateway: StartGateway, upstream: FakeUpstream) -> Ways:
    """A gateway that keeps the state of the model "own"; its upstream times out after 0.2 s of silence."""
    backend = {"use": "upstream", "base_url": f"{upstream.address}/v1", "first_event_timeout_s": 0.2}
    backends = [backend | {"name": "own"}, backend | {"name": "fake", "keeps_state": True}]
    tables = tables_for(
        upstream,
        backend=backends,
        route=[{"model": "own*", "backend": "own"}, {"model": "*", "backend": "fake"}],
        policy=[],
        cache={"use": "memory", "ttl_s": 0.2, "stale_while_revalidate_s": 60},
        relay=[{"path": "/v1/chat/completions", "backend": "fake"}],
    )
    return Ways(http, await start_gateway(tables), upstream)


WAYS = (Ways.json, Ways.stream, Ways.websocket, Ways.background)


async def test_a_server_that_sends_no_counts_has_estimates(ways: Ways, logged):
    """They are the same on each way. Ends of other kinds are in telemetry/test_call_ends.py."""
    ways.upstream.answer = answering(NO_USAGE)
    for number, way in enumerate(WAYS, 1):
        await way(ways, {"model": "own"} if way is Ways.background else {})
        await until(lambda number=number: len(lines_of(logged)) == number)

    assert lines_of(logged) == [{"input_tokens": 3, "output_tokens": 4, "estimated": True}] * 4


async def leave_waiting(ways: Ways) -> None:
    ways.upstream.answer = hang
    waiting = asyncio.create_task(ways.json({}))
    await ways.upstream.arrived.wait()
    waiting.cancel()
    await asyncio.wait([waiting])


async def leave_stream(ways: Ways, **fields: Any) -> None:
    async with ways.http.post(f"{ways.gateway}/v1/responses", json=BODY | {"stream": True} | fields) as answer:
        while b"content_part.added" not in await answer.content.readline():
            pass


async def leave_websocket(ways: Ways) -> None:
    async with calling(ways.gateway) as caller:
        await caller.create(**BODY)
        while (await caller.read())["type"] != "response.content_part.added":
            pass


async def test_what_the_cache_answers_is_saved(ways: Ways, logged):
    """What it asks for to replace an old answer is used."""
    for way in (Ways.json, Ways.json, Ways.stream, Ways.websocket):
        await way(ways, KEY)
    ways.upstream.requests.clear()
    while not ways.upstream.requests:  # until the answer is too old
        await ways.json(KEY)
    await until(lambda: SENT in lines_of(logged)[1:])
    lines = lines_of(logged)

    assert lines[:4] == [SENT, SAVED, SAVED, SAVED]
    assert [line for line in lines[4:] if line != SAVED] == [SENT]


@asynccontextmanager
async def streaming_from(ways: Ways) -> AsyncIterator[aiohttp.ClientResponse]:
    """Make the call for a stream that others share, and read its beginning."""
    async with ways.http.post(f"{ways.gateway}/v1/responses", json=BODY | {"stream": True} | KEY) as answer:
        await answer.content.readline()
        yield answer


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_shared_call_is_counted_once(ways: Ways, logged, leaves: bool):
    """For the first caller, or for the last one that reads on when the first one left."""
    released = asyncio.Event()

    async def rest(response: Any) -> None:
        await released.wait()
        await response.write(CANONICAL[len(BEGUN) :])

    ways.upstream.answer = answering(BEGUN, rest)
    async with AsyncExitStack() as followers:
        async with streaming_from(ways) as leader:
            answers = [await followers.enter_async_context(streaming_from(ways)) for _ in range(2)]
            if not leaves:
                released.set()
                await leader.read()
        if leaves:
            await until(lambda: len(lines_of(logged)) == 1)
            released.set()
        for answer in answers:
            await answer.read()
    await until(lambda: len(lines_of(logged)) == 3)

    assert sorted(lines_of(logged), key=len) == [*([{}, SAVED] if leaves else [SAVED, SAVED]), SENT]
    assert len(ways.upstream.requests) == 1


CHAT = b'data: {"id":"c","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":"Hello"}}]}\n\n'
MESSAGE = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message","content":[],"usage":'
    b'{"input_tokens":5,"cache_read_input_tokens":10,"cache_creation_input_tokens":0,"output_tokens":1}}}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":'
    b'"Hello"}}\n\n'
)
COUNTED_MESSAGE = (
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":7}}'
    b'\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (streaming(CHAT * 3, b"data: [DONE]\n\n"), {"input_tokens": 1, "output_tokens": 4, "estimated": True}),
        (streaming(CHAT, CHAT.replace(b"}}]", b'}}],"usage":{"prompt_tokens":5,"completion_tokens":7}')),
         {"input_tokens": 5, "output_tokens": 7}),
        (streaming(MESSAGE, COUNTED_MESSAGE),
         {"input_tokens": 15, "output_tokens": 7, "cached_tokens": 10, "cache_write_tokens": 0}),
        (streaming(MESSAGE), {"input_tokens": 15, "output_tokens": 2, "cached_tokens": 10, "cache_write_tokens": 0,
                              "estimated": True}),
        (refusing, {}),
    ],
)  # fmt: skip
async def test_the_tokens_of_a_relayed_call(ways: Ways, logged, answer: Answer, expected: dict[str, Any]):
    """Many servers send counts only if they are asked for them; of what they send nothing is estimated."""
    ways.upstream.answer = answer
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    async with ways.http.post(f"{ways.gateway}/v1/chat/completions", json=body) as sent:
        await sent.read()
    await until(lambda: len(lines_of(logged)) == 1)

    assert lines_of(logged) == [expected]


async def test_a_call_cancelled_while_its_texts_are_counted_has_a_rough_estimate():
    """A large call is counted in a thread, which a shutdown does not wait for."""
    workers = Workers()
    context = make_context(workers=workers)
    context.sent_call, context.runs = make_call(input="x" * LARGE_BYTES), 1
    counting = asyncio.create_task(complete_record(context))
    await asyncio.sleep(0)
    counting.cancel()
    await asyncio.wait([counting])
    workers.close()

    assert counting.cancelled()
    assert (context.record.input_tokens, context.record.estimated) == (context.sent_call.size_bytes // 4, True)


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        ("", 0), ("abcd", 1), ("abcde", 2), ("\u00e9\u00e9", 1), ("\ud800", 1), (None, 0), (7, 0),
        ("data:image/png;base64,AAAA", 0), ({"type": "input_file", "file_data": "AAAA", "filename": "a.md"}, 1),
        ([{"role": "user", "content": [{"type": "input_text", "text": "abcdefgh"}]}], 2),
    ],
)  # fmt: skip
def test_only_texts_are_estimated(value: Any, tokens: int):
    """Four bytes are a token; images, files, ids and words of the protocol are none."""
    assert estimate_tokens(value) == tokens
    assert estimate_input({"input": value, "metadata": {"a": "x" * 100}}) == tokens


def test_deep_values_are_estimated():
    """However deep a request is nested."""
    value: Any = "abcd"
    for _ in range(5000):
        value = [value]

    assert estimate_tokens(value) == 1


async def test_a_request_that_a_local_model_refuses_uses_no_tokens(http, start_gateway: StartGateway, logged):
    """It is refused before the model works on it: neither the line nor a budget counts anything."""
    gateway = await start_gateway({
        "backend": [{"name": "demo", "use": "local", "path": "backends/demo", "engine": "thread", "context_length": 64}],
        "route": [{"model": "demo", "backend": "demo"}],
        "policy": [{"use": "budget", "limit": 20_000}],
    })  # fmt: skip
    body = {"model": "demo", "input": "Hello there " * 1000}
    async with http.post(f"{gateway}/v1/responses", json=body) as answer:
        code = (await answer.json())["error"]["code"]
    async with http.get(f"{gateway}/v1/usage") as answer:
        (budget,) = (await answer.json())["budgets"]

    assert (code, budget["used"], lines_of(logged)) == ("context_length_exceeded", 0, [{}])
