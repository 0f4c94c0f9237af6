"""Every fault of an upstream, on every transport: what the caller sees, how often it is asked, what the log says.

Alone, the faulty upstream is the only one of its route. In a pool it is the first of two, and the other one is well.
"""

import asyncio
import gzip
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

import orjson
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from proxy.routing.breaker import FAULTS_IN_A_ROW, MIN_CALLS
from tests.certificates import make_certificate
from tests.conftest import StartGateway
from tests.raw import Play, RawUpstream, ask, events, no_tasks_left, playing, post, until, whole  # noqa: F401
from tests.sockets import calling
from tests.upstream import CANONICAL, FakeUpstream, final_body

JSON, SSE = "Content-Type: application/json", "Content-Type: text/event-stream"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
FRAMES = [frame + b"\n\n" for frame in CANONICAL.split(b"\n\n") if frame]
BUSY = b'{"error":{"message":"busy","type":"requests","param":null,"code":"busy"}}'
NOW = "Retry-After-Ms: 1"
SHORT = {"first_event_timeout_s": 0.3, "between_events_timeout_s": 0.3, "connect_timeout_s": 2}
ONCE, AGAIN = (1, 1), (2, 1)
"""How often the faulty upstream is asked: alone, and in a pool."""


async def trickle(_: Any, writer: Any) -> None:
    writer.write(HEAD)
    for byte in CANONICAL:
        writer.write(bytes((byte,)))
        await writer.drain()  # it fails when the gateway has closed the connection
        await asyncio.sleep(0.02)


def refusing(status: str, *headers: str, body: bytes = BUSY) -> Play:
    return playing(whole(body, JSON, *headers, status=status))


@dataclass(frozen=True)
class Fault:
    """What an upstream does, and what is expected.

    `asked` is how often it is asked alone and in a pool, `moves` whether another target answers in its place.
    """

    play: Play
    status: int
    code: str | None
    asked: tuple[int, int] = ONCE
    moves: bool = False
    is_fault: bool = True
    reason: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


FAULTS: dict[str, Fault] = {
    "reset before the head": Fault(playing(end="reset"), 502, "upstream_reset", moves=True, reason="connection "),
    "closed before the head": Fault(
        playing(end="close"), 502, "upstream_reset", moves=True, reason="connection closed"
    ),
    "a stall before the head": Fault(playing(end="hang"), 504, "upstream_timeout", reason="timeout: no event in 0.3 s"),
    "a stall before the first event": Fault(playing(HEAD, end="hang"), 504, "upstream_timeout", reason="timeout"),
    "a trickle": Fault(trickle, 504, "upstream_timeout", reason="timeout"),
    "cut in the first frame": Fault(playing(HEAD + FRAMES[0][:-9], end="close"), 502, "upstream_cut", moves=True),
    "cut after comments and keep-alives": Fault(
        playing(HEAD + b': hi\n\nevent: ping\r\ndata: {"type": "ping"}\r\n\r\n', b'data:{"type":"keepalive","n":1}\n\n', end="close"),
        502, "upstream_cut", moves=True,
    ),
    "an answer of another API": Fault(
        playing(whole(b'{"id":"c","object":"chat.completion","choices":[]}', JSON)), 502, "upstream_invalid_response"
    ),
    "the wrong type": Fault(playing(whole(b"<html>", "Content-Type: text/html")), 502, "upstream_invalid_response"),
    "invalid JSON": Fault(playing(whole(b'{"id":', JSON)), 502, "upstream_invalid_response"),
    "nothing in a 200": Fault(playing(whole(b"", JSON)), 502, "upstream_invalid_response"),
    "cut in a body": Fault(playing(whole(final_body(), JSON)[:-9], end="close"), 502, "upstream_reset", moves=True),
    "reset in a body": Fault(playing(whole(final_body(), JSON)[:-9], end="reset"), 502, "upstream_reset", moves=True),
    "a stall in a body": Fault(playing(whole(final_body(), JSON)[:-9], end="hang"), 504, "upstream_stalled", reason="timeout"),
    "a head without end": Fault(playing(whole(b"", "X-A: " + "a" * 200_000)), 502, "upstream_invalid_response"),
    "a small body of much": Fault(
        playing(whole(gzip.compress(bytes(2**24)), JSON, "Content-Encoding: gzip")), 502, "upstream_invalid_response"
    ),
    "an error in a 200": Fault(
        playing(whole(b'{"error":{"message":"x","code":"busy","status":503}}', JSON, NOW)), 503, "busy", AGAIN, moves=True
    ),
    "an error of the call in a 200": Fault(
        playing(whole(b'{"error":{"message":"x","code":"busy","status":400}}', JSON)), 400, "busy", is_fault=False
    ),
    "our key refused in a 200": Fault(
        playing(whole(b'{"error":{"message":"x","code":401}}', JSON)), 502, "upstream_auth", moves=True
    ),
    "an error as the first event": Fault(
        playing(whole(b'data: {"type":"error","code":"server_error","message":"x"}\n\n', SSE, NOW)), 502, "server_error",
        AGAIN, moves=True,
    ),
    "our key refused as the first event": Fault(
        playing(whole(b'event: error\ndata: {"error":{"message":"x","code":"invalid_api_key"}}\n\n', SSE)), 502,
        "upstream_auth", moves=True,
    ),
    "an error without a type as the first event": Fault(
        playing(whole(b'data: {"error":{"message":"x","code":"slow_down"}}\n\n', SSE, NOW)), 503, "slow_down", AGAIN,
        moves=True,
    ),
    "an error of the call as the first event": Fault(
        playing(whole(b'data: {"type":"error","error":{"code":"context_length_exceeded","message":"x"}}\n\n', SSE)), 400,
        "context_length_exceeded", is_fault=False,
    ),
    "no HTTP": Fault(playing(b"hello\r\n\r\n", end="close"), 502, "upstream_invalid_response"),
    "oversize": Fault(
        playing(whole(b'{"id":"%b"}' % (b"a" * 5000), JSON)), 502, "upstream_too_large", is_fault=False,
        more={"max_answer_bytes": 1000},
    ),
    "401": Fault(refusing("401 No"), 502, "upstream_auth", moves=True),
    "403": Fault(refusing("403 No"), 403, "busy", is_fault=False),
    "408": Fault(refusing("408 Late", "Retry-After-Ms: 1"), 408, "busy", AGAIN, moves=True, is_fault=False),
    "409": Fault(refusing("409 Conflict"), 409, "busy", is_fault=False),
    "409 with advice": Fault(refusing("409 C", "Retry-After-Ms: 1"), 409, "busy", AGAIN, moves=True, is_fault=False),
    "429": Fault(refusing("429 Busy", "Retry-After-Ms: 1"), 429, "busy", AGAIN, moves=True, is_fault=False),
    "429 in seconds": Fault(refusing("429 Busy", "Retry-After: 0.01"), 429, "busy", AGAIN, moves=True, is_fault=False),
    "429 until a date": Fault(
        refusing("429 Busy", f"Retry-After: {formatdate(0, usegmt=True)}"), 429, "busy", AGAIN, moves=True,
        is_fault=False,
    ),
    "429 for long": Fault(refusing("429 Busy", "Retry-After: 40"), 429, "busy", moves=True, is_fault=False),
    "429 without quota": Fault(
        refusing("429 No", body=b'{"error":{"message":"x","type":"insufficient_quota","param":null,"code":"busy"}}'),
        429, "busy", moves=True, is_fault=False,
    ),
    "429 not to be retried": Fault(refusing("429 No", "X-Should-Retry: false"), 429, "busy", moves=True, is_fault=False),
    "500": Fault(refusing("500 No", "Retry-After-Ms: 1"), 500, "busy", AGAIN, moves=True),
    "502": Fault(refusing("502 No", "Retry-After-Ms: 1"), 502, "busy", AGAIN, moves=True),
    "503": Fault(refusing("503 No", "Retry-After-Ms: 1"), 503, "busy", AGAIN, moves=True),
    "504": Fault(refusing("504 No", "Retry-After-Ms: 1"), 504, "busy", AGAIN, moves=True),
    "529": Fault(refusing("529 Busy", "Retry-After-Ms: 1"), 529, "busy", AGAIN, moves=True),
    "503 not to be retried": Fault(refusing("503 No", "X-Should-Retry: false"), 503, "busy"),
}  # fmt: skip
BY_NAME = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)


async def by_json(address: str) -> tuple[int, str | None]:
    """Return the status, and the code of the error if it is one, of a call for a body."""
    answer = await ask(address, post())
    return answer.status, None if answer.status == 200 else orjson.loads(answer.body)["error"]["code"]


async def by_stream(address: str) -> tuple[int, str | None]:
    """The same of a call for a stream: nothing was sent, so that it is an HTTP status too."""
    answer = await ask(address, post(b'{"model":"m","stream":true}'))
    if answer.status == 200:
        assert events(answer.body)[-2]["type"] == "response.completed"
        return 200, None
    return answer.status, orjson.loads(answer.body)["error"]["code"]


async def by_websocket(address: str) -> tuple[int, str | None]:
    """The same of a turn in WebSocket mode."""
    async with calling(address) as caller:
        last = await caller.ask()
    return (200, None) if last["type"] == "response.completed" else (last["status"], last["error"]["code"])


Ask = Callable[[str], Awaitable[tuple[int, str | None]]]
BY_TRANSPORT = pytest.mark.parametrize("ask_by", [by_json, by_stream, by_websocket])


@pytest.fixture
async def faulty():
    """The upstream that plays the fault."""
    async with RawUpstream(playing()) as server:
        yield server
        await until(lambda: server.open == 0)


def tables(faulty: RawUpstream, fault: Fault, *others: FakeUpstream, **route: Any) -> dict[str, Any]:
    address = f"http://127.0.0.1:{faulty.port}/v1"
    backends = [{"use": "upstream", "name": "faulty", "base_url": address, **SHORT, **fault.more}]
    backends += [{"use": "upstream", "name": "well", "base_url": f"{other.address}/v1"} for other in others]
    names = [backend["name"] for backend in backends]
    return {"backend": backends, "route": [{"model": "*", "backends": names} | route]}


@BY_NAME
@BY_TRANSPORT
async def test_alone(faulty: RawUpstream, start_gateway: StartGateway, logged, fault: Fault, ask_by: Ask):
    """The caller sees the fault, after attempts where they are safe; the operator reads its reason, in log and trace."""
    faulty.play = fault.play
    provider, spans = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    address = await start_gateway(tables(faulty, fault), tracer=provider.get_tracer("test"))

    assert await ask_by(address) == (fault.status, fault.code)
    assert len(faulty.requests) == fault.asked[0]
    failures = [line for line in logged if line["event"] == "backend.failed"]
    assert all(line["code"] == fault.code for line in failures)
    assert (fault.reason or "") in str([line.get("reason") for line in failures])
    (finished,) = [line for line in logged if line["event"] == "request.finished"]
    assert finished.get("attempts", 1) == (2 if fault.asked[0] == 2 else 1)
    assert "127.0.0.1" not in str([line for line in logged if line["event"] == "backend.failed"])
    attributes = [span.attributes or {} for span in spans.get_finished_spans()]
    attempts = [found for found in attributes if "headgate.target" in found]
    assert len(attempts) == fault.asked[0]
    assert {attempt.get("error.type") for attempt in attempts if failures} <= {fault.code}


@BY_NAME
@BY_TRANSPORT
async def test_in_a_pool(
    faulty: RawUpstream, upstream: FakeUpstream, start_gateway: StartGateway, fault: Fault, ask_by: Ask
):
    """Where it is safe another target answers, once; the caller sees nothing of the fault."""
    faulty.play = fault.play
    address = await start_gateway(tables(faulty, fault, upstream))

    assert await ask_by(address) == ((200, None) if fault.moves else (fault.status, fault.code))
    assert (len(faulty.requests), len(upstream.requests)) == (fault.asked[1], int(fault.moves))


@BY_NAME
async def test_a_target_with_faults_in_a_row_is_ejected(
    faulty: RawUpstream, upstream: FakeUpstream, start_gateway: StartGateway, logged, fault: Fault
):
    """One that is busy, or refuses what it is sent, is not at fault."""
    faulty.play = fault.play
    address = await start_gateway(tables(faulty, fault, upstream, attempts=1))
    for _ in range(FAULTS_IN_A_ROW):
        await by_json(address)
    asked = len(faulty.requests)
    last = await by_json(address)
    is_limited = fault.status == 429 and len(faulty.requests) == asked

    assert [line["backend"] for line in logged if line["event"] == "backend.ejected"] == ["faulty"] * fault.is_fault
    assert (last == (200, None)) == (fault.is_fault or is_limited)


LATE_FAULTS = {
    "a stall in the stream": (playing(HEAD + FRAMES[0], end="hang"), "upstream_stalled"),
    "a cut in a frame": (playing(HEAD + FRAMES[0] + FRAMES[1][:-9], end="close"), "upstream_cut"),
    "a reset in the stream": (playing(whole(CANONICAL, SSE)[: 100 + len(FRAMES[0])], end="reset"), "upstream_reset"),
}


@pytest.mark.parametrize(("play", "code"), LATE_FAULTS.values(), ids=LATE_FAULTS)
@pytest.mark.parametrize("is_socket", [False, True])
async def test_a_call_is_not_moved_once_it_has_begun(  # noqa: PLR0913, PLR0917
    faulty, upstream: FakeUpstream, start_gateway, logged, play, code, is_socket: bool
):
    """What the caller has received is ended as failed; nothing is generated a second time, but it counts as a fault."""
    faulty.play = play
    address = await start_gateway(tables(faulty, FAULTS["500"], upstream))
    for _ in range(FAULTS_IN_A_ROW):
        if is_socket:
            async with calling(address) as caller:
                assert (await caller.ask())["type"] == "response.failed"
        else:
            answer = await ask(address, post(b'{"model":"m","stream":true}'))
            assert [event["type"] for event in events(answer.body)[-3:-1]] == ["error", "response.failed"]

    assert (len(faulty.requests), upstream.requests) == (FAULTS_IN_A_ROW, [])
    assert [line["code"] for line in logged if line["event"] == "backend.ejected"] == [code]


async def test_a_target_whose_answers_begin_late_is_ejected(
    faulty: RawUpstream, upstream: FakeUpstream, start_gateway: StartGateway, logged
):
    """Its answers are whole; the other target has the calls then."""
    faulty.play = playing(whole(final_body(), JSON))
    slow = Fault(faulty.play, 200, None, more={"slow_start_after_s": 1e-6})
    address = await start_gateway(tables(faulty, slow, upstream))

    assert [await by_json(address) for _ in range(MIN_CALLS + 1)] == [(200, None)] * (MIN_CALLS + 1)
    assert [line["code"] for line in logged if line["event"] == "backend.ejected"] == ["slow"]
    assert (len(faulty.requests), len(upstream.requests)) == (MIN_CALLS, 1)


@BY_TRANSPORT
async def test_a_target_that_is_late_is_hedged(
    faulty: RawUpstream, upstream: FakeUpstream, start_gateway: StartGateway, logged, ask_by: Ask
):
    """However the caller asks: the other target answers, and the call of the first one ends."""
    faulty.play = playing(HEAD, end="hang")
    address = await start_gateway(tables(faulty, Fault(faulty.play, 0, None), upstream, hedge_after_ms=20))

    assert await ask_by(address) == (200, None)
    (line,) = [line for line in logged if line["event"] == "backend.hedged"]
    assert (line["backend"], line["cancelled"]) == ("well", "faulty")
    await until(lambda: faulty.open == 0)


async def test_events_without_numbers_end_with_one_that_is_valid(faulty: RawUpstream, start_gateway: StartGateway):
    """In WebSocket mode the `error` event is left out, and had no number."""
    created = orjson.loads(FRAMES[0].partition(b"data: ")[2])
    del created["sequence_number"]
    error = b'{"type":"error","code":"server_error","message":"x"}'
    faulty.play = playing(whole(b"data: %b\n\ndata: %b\n\n" % (orjson.dumps(created), error), SSE))
    async with calling(await start_gateway(tables(faulty, FAULTS["500"], attempts=1))) as caller:
        turn = await caller.turn_of()

    assert [(event["type"], event.get("sequence_number")) for event in turn] == [
        ("response.created", None), ("response.failed", 0),
    ]  # fmt: skip


@BY_TRANSPORT
@pytest.mark.parametrize(
    ("host", "codes", "reason"),
    [
        ("127.0.0.1", ("upstream_unreachable",), "connection refused"),
        ("nowhere.invalid", ("upstream_unreachable", "upstream_connect_timeout"), None),  # a resolver may be silent
    ],
)
async def test_an_upstream_without_a_connection(  # noqa: PLR0913, PLR0917
    upstream: FakeUpstream, start_gateway: StartGateway, logged, ask_by: Ask, host: str, codes: Any, reason: str | None
):
    """Alone it is a 502 or 504 after two attempts; in a pool the other target answers."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        away = {"use": "upstream", "name": "away", "connect_timeout_s": 2}
        away["base_url"] = f"http://{host}:{reserved.getsockname()[1]}/v1"
        well = {"use": "upstream", "name": "well", "base_url": f"{upstream.address}/v1"}
        alone = await start_gateway({"backend": [away], "route": [{"model": "*", "backend": "away"}]})
        pool = await start_gateway({"backend": [away, well], "route": [{"model": "*", "backends": ["away", "well"]}]})
        seen, seen_in_pool = await ask_by(alone), await ask_by(pool)
    failures = [line for line in logged if line["event"] == "backend.failed"]

    assert seen[1] in codes
    assert (seen_in_pool, len(upstream.requests)) == ((200, None), 1)
    assert [line["backend"] for line in failures] == ["away"] * 3
    assert reason in (None, failures[0]["reason"])


async def test_an_upstream_whose_certificate_is_not_trusted(
    upstream: FakeUpstream, start_gateway: StartGateway, logged, tmp_path: Path
):
    """It is not asked, and never again for this call; in a pool the other target answers. The log says which check."""
    make_certificate(tmp_path, "server")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    async with RawUpstream(playing(whole(final_body(), JSON)), tls=tls) as secure:
        away = {"use": "upstream", "name": "away", "base_url": f"https://localhost:{secure.port}/v1"}
        well = {"use": "upstream", "name": "well", "base_url": f"{upstream.address}/v1"}
        alone = await start_gateway({"backend": [away], "route": [{"model": "*", "backend": "away"}]})
        pool = await start_gateway({"backend": [away, well], "route": [{"model": "*", "backends": ["away", "well"]}]})
        seen = [await ask_by(address) for address in (alone, pool) for ask_by in (by_json, by_stream, by_websocket)]
    failures = [(line["backend"], line["reason"]) for line in logged if line["event"] == "backend.failed"]

    assert seen == [(502, "upstream_unreachable")] * 3 + [(200, None)] * 3
    assert failures == [("away", "TLS: self-signed certificate")] * 6
    assert secure.requests == []


async def test_a_connection_that_was_closed_while_idle_is_not_seen(faulty: RawUpstream, start_gateway: StartGateway):
    """The call is sent on a fresh one."""
    faulty.play = playing(whole(final_body(), JSON), end="close")
    address = await start_gateway(tables(faulty, FAULTS["500"]))

    assert [await by_json(address) for _ in range(5)] == [(200, None)] * 5
    assert (len(faulty.requests), faulty.opened) == (5, 5)
