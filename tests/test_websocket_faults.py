"""Every fault of an upstream that speaks WebSocket: what the caller sees, how often it is asked, what log and trace say.

The columns are those of `test_upstream_faults.py`, and so is what is expected, wherever both have a fault.
"""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import orjson
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from proxy.routing.breaker import FAULTS_IN_A_ROW
from proxy.wire.sse import MAX_FRAME_BYTES
from proxy.wire.upgrade import accept_key
from tests.backends.upstream.test_reaching import ConnectProxy
from tests.backends.upstream.websocket.test_hostile_upstreams import CREATED, DONE, GRANT, frame
from tests.certificates import make_certificate
from tests.conftest import StartGateway
from tests.raw import Play, RawUpstream, no_tasks_left, playing, until  # noqa: F401
from tests.sockets import calling
from tests.test_upstream_faults import AGAIN, BUSY, Fault, by_json, by_stream, by_websocket, refusing, tables
from tests.upstream import FakeUpstream


class SocketFaults(RawUpstream):
    """A server that plays `play` for each request, or with `grants` for each message of a WebSocket."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(self._play, tls=tls)
        self.grants = True
        self.fault: Play = playing()
        self.messages = 0

    @property
    def attempts(self) -> int:
        """How often it was asked, refused upgrades included."""
        posts = sum(request.startswith(b"POST") for request in self.requests)
        return max(len(self.requests) - posts, posts + self.messages)

    async def _play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        key = self.requests[-1].partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0].decode()
        if not (key and self.grants):
            await self.fault(reader, writer)
            return
        writer.write(GRANT.replace(b"ACCEPT", accept_key(key).encode()))
        while not writer.is_closing():
            first, size = await reader.readexactly(2)
            if first != 0x81:  # a close
                writer.close()
                return
            await reader.readexactly((size & 0x7F) + 4)
            self.messages += 1
            await self.fault(reader, writer)


def saying(status: int, **headers: str) -> Play:
    """Return a play of an `error` message, after which the connection stays."""
    error = orjson.loads(BUSY)["error"] | {"headers": headers}
    return playing(frame(orjson.dumps({"type": "error", "status": status, "error": error})))


def closing(code: int) -> Play:
    return playing(frame(code.to_bytes(2), 0x88), end="hang")


GONE: dict[str, Any] = {"status": 502, "code": "upstream_reset", "moves": True}
INVALID: dict[str, Any] = {"status": 502, "code": "upstream_invalid_response"}
TOO_LARGE = b"\x81\x7f" + (MAX_FRAME_BYTES + 1).to_bytes(8)
# Of the handshake: no call was sent, so that another target may answer it, or the same one again.
REFUSED: dict[str, Fault] = {
    "reset": Fault(playing(end="reset"), **GONE, asked=AGAIN, reason="connection "),
    "closed": Fault(playing(end="close"), **GONE, asked=AGAIN, reason="connection closed"),
    "a stall": Fault(
        playing(end="hang"), 504, "upstream_connect_timeout", AGAIN, moves=True, reason="timeout: no connection in 0.3",
        more={"connect_timeout_s": 0.3},
    ),
    "no HTTP": Fault(playing(b"hello\r\n\r\n", end="close"), **INVALID, moves=True),
    "another key": Fault(playing(GRANT, end="hang"), **INVALID, moves=True),
    "401": Fault(refusing("401 No"), 502, "upstream_auth", moves=True),
    "403": Fault(refusing("403 No"), 403, "busy", is_fault=False),
    "429": Fault(refusing("429 Busy", "Retry-After-Ms: 1"), 429, "busy", AGAIN, moves=True, is_fault=False),
    "429 for long": Fault(refusing("429 Busy", "Retry-After: 40"), 429, "busy", moves=True, is_fault=False),
    "503": Fault(refusing("503 No", "Retry-After-Ms: 1"), 503, "busy", AGAIN, moves=True),
}  # fmt: skip
# Of a turn before its first event.
GRANTED: dict[str, Fault] = {
    "reset": Fault(playing(end="reset"), **GONE, reason="connection "),
    "closed without a close": Fault(playing(end="close"), **GONE, reason="connection closed"),
    **{f"closed with {code}": Fault(closing(code), **GONE, reason=f"closed with {code}") for code in
       (1000, 1008, 1009, 1011, 1012)},
    "cut in the first message": Fault(playing(frame(CREATED)[:-9], end="close"), **GONE, reason="connection closed"),
    "a stall": Fault(playing(end="hang"), 504, "upstream_timeout", reason="timeout: no event in 0.3 s"),
    "a stall in the first message": Fault(
        playing(frame(b"", 0x89) * 9 + frame(CREATED)[:-9], end="hang"), 504, "upstream_timeout", reason="timeout"
    ),
    "no JSON": Fault(playing(frame(b"nonsense"), end="hang"), **INVALID),
    "no frame": Fault(playing(b"HTTP/1.1 200 OK\r\n\r\n", end="hang"), **INVALID),
    "oversize": Fault(playing(TOO_LARGE, end="hang"), **INVALID),
    "error 401": Fault(saying(401), 502, "upstream_auth", moves=True),
    "error 403": Fault(saying(403), 403, "busy", is_fault=False),
    "error 429": Fault(saying(429, **{"Retry-After-Ms": "1"}), 429, "busy", AGAIN, moves=True, is_fault=False),
    "error 503": Fault(saying(503, **{"Retry-After-Ms": "1"}), 503, "busy", AGAIN, moves=True),
}  # fmt: skip
ROWS = [
    pytest.param(fault, grants, id=f"{'turn' if grants else 'handshake'}: {name}")
    for grants, faults in ((False, REFUSED), (True, GRANTED))
    for name, fault in faults.items()
]
BY_ROW = pytest.mark.parametrize(("fault", "grants"), ROWS)


@pytest.fixture
async def faulty():
    """The upstream that plays the fault."""
    async with SocketFaults() as server:
        yield server
        await until(lambda: server.open == 0)


def socket_tables(faulty: SocketFaults, fault: Fault, *others: FakeUpstream, **route: Any) -> dict[str, Any]:
    found = tables(faulty, fault, *others, **route)
    found["backend"][0]["websocket"] = True
    return found


@BY_ROW
async def test_alone(faulty: SocketFaults, start_gateway: StartGateway, logged, fault: Fault, grants: bool):
    """The caller sees the fault, after attempts where they are safe; the operator reads its reason."""
    faulty.fault, faulty.grants = fault.play, grants
    address = await start_gateway(socket_tables(faulty, fault))

    assert await by_websocket(address) == (fault.status, fault.code)
    assert faulty.attempts == fault.asked[0]
    failures = [line for line in logged if line["event"] == "backend.failed"]
    assert all(line["code"] == fault.code for line in failures)
    assert (fault.reason or "") in str([line.get("reason") for line in failures])
    (finished,) = [line for line in logged if line["event"] == "request.finished"]
    assert (finished["status"], finished.get("attempts", 1)) == (fault.status, fault.asked[0])
    assert "127.0.0.1" not in str(failures)


@BY_ROW
async def test_in_a_pool(
    faulty: SocketFaults, upstream: FakeUpstream, start_gateway: StartGateway, logged, fault: Fault, grants: bool
):
    """Where it is safe another target answers, once; one with faults in a row is ejected, one that is busy is not."""
    faulty.fault, faulty.grants = fault.play, grants
    address = await start_gateway(socket_tables(faulty, fault, upstream))
    seen = await by_websocket(address)
    asked = faulty.attempts, len(upstream.requests)
    for _ in range(FAULTS_IN_A_ROW - 1):
        await by_websocket(address)

    assert seen == ((200, None) if fault.moves else (fault.status, fault.code))
    assert asked == (fault.asked[1], int(fault.moves))
    assert [line["backend"] for line in logged if line["event"] == "backend.ejected"] == ["faulty"] * fault.is_fault


UNREACHABLE = {
    "refused": ("http://127.0.0.1:1/v1", {"upstream_unreachable"}, "connection refused"),
    "DNS": ("http://nowhere.invalid/v1", {"upstream_unreachable", "upstream_connect_timeout"}, ""),
}


@pytest.mark.parametrize(("url", "codes", "reason"), UNREACHABLE.values(), ids=UNREACHABLE)
async def test_without_a_connection(  # noqa: PLR0913, PLR0917
    faulty: SocketFaults, upstream: FakeUpstream, start_gateway: StartGateway, logged, url, codes, reason
):
    """Alone it is a 502 or 504 after two attempts; in a pool the other target answers."""
    away = Fault(playing(), **GONE, more={"base_url": url})
    alone = await by_websocket(await start_gateway(socket_tables(faulty, away)))
    pooled = await by_websocket(await start_gateway(socket_tables(faulty, away, upstream)))
    failures = [line for line in logged if line["event"] == "backend.failed"]

    assert alone[1] in codes
    assert (pooled, len(upstream.requests)) == ((200, None), 1)
    assert [line["backend"] for line in failures] == ["faulty"] * 3
    assert all(line["reason"].startswith(reason) for line in failures)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a self-signed certificate for `localhost`, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder, "cert")
    return folder


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_through_a_proxy_and_tls(start_gateway: StartGateway, logged, certificate: Path, is_trusted: bool):
    """As by HTTP: a tunnel, and a certificate that is verified."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate / "cert.pem", certificate / "cert.key")
    async with SocketFaults(tls) as secure, ConnectProxy() as proxy:
        secure.fault = playing(frame(CREATED) + frame(DONE))
        more = {"base_url": f"https://localhost:{secure.port}/v1", "proxy": proxy.address}
        more |= {"ca_file": str(certificate / "cert.pem")} if is_trusted else {}
        seen = await by_websocket(await start_gateway(socket_tables(secure, Fault(playing(), **GONE, more=more))))
        await until(lambda: secure.open == 0)

    assert seen == ((200, None) if is_trusted else (502, "upstream_unreachable"))
    assert [head[0] for head in proxy.heads] == [f"CONNECT localhost:{secure.port} HTTP/1.1"]
    failures = [line["reason"] for line in logged if line["event"] == "backend.failed"]
    assert failures == ([] if is_trusted else ["TLS: self-signed certificate"])


async def test_the_span_of_the_attempt_has_the_fault(faulty: SocketFaults, start_gateway: StartGateway):
    spans, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    faulty.fault = closing(1011)
    tables_of_one = socket_tables(faulty, GRANTED["a stall"])
    await by_websocket(await start_gateway(tables_of_one, tracer=provider.get_tracer("test")))
    found = [span.attributes or {} for span in spans.get_finished_spans()]
    (attributes,) = [attributes for attributes in found if "headgate.target" in attributes]

    assert attributes["headgate.reason"] == "closed with 1011"


LATE = {
    "a stall": (playing(frame(CREATED), end="hang"), "upstream_stalled"),
    "a cut in a message": (playing(frame(CREATED) + frame(DONE)[:-9], end="close"), "upstream_reset"),
    "a reset": (playing(frame(CREATED), end="reset"), "upstream_reset"),
    "a close": (playing(frame(CREATED) + frame((1011).to_bytes(2), 0x88), end="hang"), "upstream_reset"),
    "no JSON": (playing(frame(CREATED) + frame(b"nonsense"), end="hang"), "upstream_invalid_response"),
    "no frame": (playing(frame(CREATED) + b"\xff\xff", end="hang"), "upstream_invalid_response"),
}


@pytest.mark.parametrize(("play", "code"), LATE.values(), ids=LATE)
async def test_a_turn_is_not_moved_once_it_has_begun(
    faulty: SocketFaults, upstream: FakeUpstream, start_gateway: StartGateway, logged, play: Play, code: str
):
    """What the caller has received is ended as failed; nothing is generated a second time, but it counts as a fault."""
    faulty.fault = play
    address = await start_gateway(socket_tables(faulty, GRANTED["a stall"], upstream))
    for _ in range(FAULTS_IN_A_ROW):
        async with calling(address) as caller:
            assert [message["type"] for message in await caller.turn_of()] == ["response.created", "response.failed"]

    assert (faulty.messages, upstream.requests) == (FAULTS_IN_A_ROW, [])
    assert [line["code"] for line in logged if line["event"] == "backend.ejected"] == [code]
    assert {line["code"] for line in logged if line["event"] == "request.finished"} == {code}


@pytest.mark.parametrize("ask_by", [by_json, by_stream])
async def test_callers_by_http_are_answered_by_post(faulty: SocketFaults, start_gateway: StartGateway, ask_by):
    """With the faults of that: the upstream is asked as one without WebSocket mode."""
    faulty.fault = refusing("503 No", "Retry-After-Ms: 1")
    address = await start_gateway(socket_tables(faulty, REFUSED["503"]))

    assert await ask_by(address) == (503, "busy")
    assert [request[:5] for request in faulty.requests] == [b"POST "] * 2
