"""Faults, refusals and dialects of an upstream, played on a raw socket."""

import gzip
import re
import socket

import orjson
import pytest
from openai import APIError, InternalServerError

from tests.raw import RawUpstream, ask, events, no_tasks_left, playing, post, until, whole  # noqa: F401
from tests.sdk import connect_sdk
from tests.upstream import CANONICAL, final_body

FINAL = final_body()
JSON, SSE = "Content-Type: application/json", "Content-Type: text/event-stream"
OPEN_ENDED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"  # ends where the connection ends
FRAMES = [frame + b"\n\n" for frame in CANONICAL.split(b"\n\n") if frame]
FIRST_FRAMES = b"".join(FRAMES[:6])
REFUSAL = b'{"error":  {"message":"No.","type":"server_error","param":null,"code":"no"}}'
BOTH = pytest.mark.parametrize("call", [b'{"model":"m"}', b'{"model":"m","stream":true}'], ids=["json", "stream"])
STREAM = post(b'{"model":"m","stream":true}')


def frame_of(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


@pytest.fixture
async def upstream():
    """An upstream that answers with the canonical response until a test sets `play`."""
    async with RawUpstream(playing(whole(FINAL, JSON))) as server:
        yield server
        await until(lambda: server.open == 0)  # the gateway is closed by now and keeps no connection


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_KEY", "sk-gateway")


@pytest.fixture
async def gateway(upstream: RawUpstream, start_gateway) -> str:
    """A gateway in front of `upstream`."""
    return await start_gateway(tables(f"{upstream.address}/v1"))


@pytest.fixture
async def short_timeout_gateway(upstream: RawUpstream, start_gateway) -> str:
    """A gateway with timeouts of half a second."""
    waits = {"first_event_timeout_s": 0.5, "between_events_timeout_s": 0.5}
    return await start_gateway(tables(f"{upstream.address}/v1", **waits))


def tables(base_url: str, **more: object) -> dict[str, object]:
    backend = {"name": "fake", "use": "upstream", "base_url": base_url, "api_key": "env:GATEWAY_KEY"}
    return {"backend": [backend | more], "route": [{"model": "*", "backend": "fake"}]}


FAULTS = {
    "closed before the head": (playing(end="close"), 502, "upstream_reset"),
    "reset before the head": (playing(end="reset"), 502, "upstream_reset"),
    "reset in the head": (playing(b"HTTP/1.1 200 OK\r\nContent-", end="reset"), 502, "upstream_reset"),
    "closed in the body": (playing(whole(FINAL, JSON)[:-9], end="close"), 502, "upstream_reset"),
    "reset in the body": (playing(whole(FINAL, JSON)[:-9], end="reset"), 502, "upstream_reset"),
    "no HTTP": (playing(b"hello\r\n\r\n", end="close"), 502, "upstream_invalid_response"),
    "two framings": (playing(whole(FINAL, JSON, "Transfer-Encoding: chunked")), 502, "upstream_invalid_response"),
    "a header of 200 kB": (playing(whole(FINAL, JSON, "X-A: " + "a" * 200_000)), 502, "upstream_invalid_response"),
    "a NUL in a header": (playing(whole(FINAL, JSON, "X-A: a\0")), 502, "upstream_invalid_response"),
    "302": (playing(whole(b"", "Location: /x", status="302 Found")), 502, "upstream_invalid_response"),
    "307": (playing(whole(b"", "Location: /x", status="307 Go")), 502, "upstream_invalid_response"),
    "101": (playing(b"HTTP/1.1 101 Go\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"), 502, "upstream_invalid_response"),
    "a flood of 100 Continue": (
        playing(b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000, whole(FINAL, JSON)),
        502,
        "upstream_invalid_response",
    ),
    "204": (playing(b"HTTP/1.1 204 No\r\n\r\n"), 502, "upstream_invalid_response"),
    "999": (playing(whole(REFUSAL, JSON, status="999 What")), 502, "upstream_invalid_response"),
    "200 with HTML": (playing(whole(b"<html>", "Content-Type: text/html")), 502, "upstream_invalid_response"),
    "200 with nothing": (playing(whole(b"", JSON)), 502, "upstream_invalid_response"),
    "200 with a list": (playing(whole(b"[]", JSON)), 502, "upstream_invalid_response"),
    "200 with half a JSON": (playing(whole(FINAL[:-9], JSON)), 502, "upstream_invalid_response"),
    "an unknown encoding": (playing(whole(FINAL, JSON, "Content-Encoding: br")), 502, "upstream_invalid_response"),
    "a stream of no events": (playing(whole(b"", SSE)), 502, "upstream_cut"),
    "a stream of the sentinel": (playing(whole(b"data: [DONE]\n\n", SSE)), 502, "upstream_cut"),
    "401": (playing(whole(b'{"error":{"message":"sk-gateway"}}', JSON, status="401 No")), 502, "upstream_auth"),
}


SILENCES = {
    "before the head": (playing(end="hang"), "upstream_timeout"),
    "in the head": (playing(b"HTTP/1.1 200 OK\r\nContent-", end="hang"), "upstream_timeout"),
    "in the body": (playing(whole(FINAL, JSON)[:-9], end="hang"), "upstream_stalled"),
    "before the first event": (playing(OPEN_ENDED, end="hang"), "upstream_timeout"),
    "in the first event": (playing(OPEN_ENDED + FRAMES[0][:-9], end="hang"), "upstream_timeout"),
}


@BOTH
@pytest.mark.parametrize(("play", "code"), SILENCES.values(), ids=SILENCES)
async def test_a_timeout_before_the_first_event_is_a_504(
    short_timeout_gateway: str, upstream: RawUpstream, call: bytes, play, code: str
):
    """The connection to the upstream is closed as well."""
    upstream.play = play
    answer = await ask(short_timeout_gateway, post(call))

    assert (answer.status, answer.error["code"]) == (504, code)
    await until(lambda: upstream.open == 0)
    upstream.play = playing(whole(FINAL, JSON))
    assert (await ask(short_timeout_gateway, post())).status == 200


@BOTH
@pytest.mark.parametrize(("play", "status", "code"), FAULTS.values(), ids=FAULTS)
async def test_a_fault_before_the_first_event_is_an_error_status(
    gateway, upstream: RawUpstream, call, play, status, code
):
    """The error is the gateway's own envelope, without the upstream's answer, for streams and bodies; the next call is served."""
    upstream.play = play
    answer = await ask(gateway, post(call))

    assert (answer.status, answer.error["code"], answer.error["type"]) == (status, code, "server_error")
    assert "sk-gateway" not in str(answer)
    assert len(upstream.requests) == 1  # neither retried nor redirected
    upstream.play = playing(whole(FINAL, JSON))
    assert (await ask(gateway, post())).status == 200


async def test_a_frame_whose_data_is_not_json_is_never_followed(gateway: str, upstream: RawUpstream):
    """It passes like any unknown frame; without a followed event the stream counts as truncated."""
    upstream.play = playing(whole(frame_of("response.created", b'{"type":"response.created",nope'), SSE))
    body, stream = await ask(gateway, post()), await ask(gateway, STREAM)

    assert (body.status, body.error["code"]) == (502, "upstream_cut")
    assert (stream.status, stream.body.count(b"event: response.failed")) == (200, 1)
    assert stream.body.endswith(b"data: [DONE]\n\n")


LATE_FAULTS = {
    "closed": (playing(whole(CANONICAL, SSE)[: 100 + len(FIRST_FRAMES)], end="close"), "upstream_reset"),
    "reset": (playing(whole(CANONICAL, SSE)[: 100 + len(FIRST_FRAMES)], end="reset"), "upstream_reset"),
    "ended in the middle of a frame": (
        playing(OPEN_ENDED + FIRST_FRAMES + FRAMES[6][:-20], end="close"),
        "upstream_cut",
    ),
    "ended without its last event": (playing(whole(FIRST_FRAMES, SSE)), "upstream_cut"),
    "ended with the sentinel alone": (playing(whole(FIRST_FRAMES + b"data: [DONE]\n\n", SSE)), "upstream_cut"),
    "silent": (playing(OPEN_ENDED + FIRST_FRAMES, end="hang"), "upstream_stalled"),
    "silent in the middle of a frame": (
        playing(OPEN_ENDED + FIRST_FRAMES + FRAMES[6][:-20], end="hang"),
        "upstream_stalled",
    ),
}


@pytest.mark.parametrize(("play", "code"), LATE_FAULTS.values(), ids=LATE_FAULTS)
async def test_a_fault_after_the_first_event_ends_the_stream_as_the_protocol_requires(
    gateway, short_timeout_gateway, upstream, play, code
):
    """The open item is closed; `error` and `response.failed` follow with continued sequence numbers, then the sentinel."""
    upstream.play = play
    answer = await ask(short_timeout_gateway if code == "upstream_stalled" else gateway, STREAM)
    *passed, closed, error, failed, done = events(answer.body)

    assert answer.status == 200
    assert [event["type"] for event in passed] == [event["type"] for event in events(FIRST_FRAMES)]
    assert (closed["type"], closed["item"]["status"]) == ("response.output_item.done", "incomplete")
    assert failed["response"]["output"] == [closed["item"]]
    assert (error["type"], error["code"], error["error"]["code"], error["param"]) == ("error", code, code, None)
    assert (failed["type"], failed["response"]["status"], done) == ("response.failed", "failed", "[DONE]")
    assert failed["response"]["error"] == {"code": "server_error", "message": error["message"]}
    assert failed["response"]["id"] == passed[0]["response"]["id"]
    assert [event["sequence_number"] for event in (*passed, closed, error, failed)] == list(range(len(passed) + 3))
    await until(lambda: upstream.open == 0 or code != "upstream_stalled")


@pytest.mark.parametrize(("play", "code"), LATE_FAULTS.values(), ids=LATE_FAULTS)
async def test_a_stream_that_fails_is_an_error_status_for_a_json_call(
    gateway, short_timeout_gateway, upstream, play, code: str
):
    """An incomplete answer is never returned as a body."""
    upstream.play = play
    answer = await ask(short_timeout_gateway if code == "upstream_stalled" else gateway, post())

    assert (answer.status, answer.error["code"]) == (504 if code == "upstream_stalled" else 502, code)


async def test_the_sdk_raises_the_fault(gateway: str, upstream: RawUpstream):
    """It raises by status before the first event and by the `error` event after it; a truncated answer never looks complete."""
    async with connect_sdk(gateway, "x") as client:
        upstream.play = playing(end="reset")
        with pytest.raises(InternalServerError) as before:
            await client.responses.create(model="m", input="Hi", stream=True)
        upstream.play = LATE_FAULTS["reset"][0]
        async with await client.responses.create(model="m", input="Hi", stream=True) as stream:
            with pytest.raises(APIError, match="broke off") as after:
                seen = [event.type async for event in stream]
        async with client.responses.stream(model="m", input="Hi") as helped:
            with pytest.raises(APIError, match="broke off"):
                await helped.get_final_response()

    assert (before.value.status_code, before.value.code) == (502, "upstream_reset")
    assert after.value.code == "upstream_reset"
    assert "seen" not in locals()


WHOLE = {
    "JSON": playing(whole(FINAL, JSON)),
    "JSON with a charset": playing(whole(FINAL, "content-type: application/json; charset=utf-8")),
    "JSON without a name": playing(whole(FINAL)),
    "JSON under a wrong name": playing(whole(FINAL, "Content-Type: text/html")),
    "JSON with 201": playing(whole(FINAL, JSON, status="201 Created")),
    "JSON with 202": playing(whole(FINAL, JSON, status="202 Accepted")),
    "JSON called events": playing(whole(b"\r\n " + FINAL, SSE)),
    "JSON after a byte order mark": playing(whole(b"\xef\xbb\xbf" + FINAL, JSON)),
    "JSON that ends with the connection": playing(b"HTTP/1.0 200 OK\r\n\r\n" + FINAL, end="close"),
    "unrequested gzip of JSON": playing(whole(gzip.compress(FINAL), JSON, "Content-Encoding: gzip")),
    "events": playing(whole(CANONICAL, SSE)),
    "events with a charset": playing(whole(CANONICAL, "content-type: Text/Event-Stream; charset=utf-8")),
    "unrequested gzip of events": playing(whole(gzip.compress(CANONICAL), SSE, "Content-Encoding: gzip")),
    "events with 201": playing(whole(CANONICAL, SSE, status="201 Created")),
    "events under a wrong name": playing(whole(CANONICAL, "Content-Type: text/plain")),
    "events called JSON": playing(whole(CANONICAL, JSON)),
    "events without a name": playing(whole(CANONICAL)),
    "events without a name, after a comment": playing(whole(b": hello\n\n" + CANONICAL)),
    "events without a name, after a byte order mark": playing(whole(b"\xef\xbb\xbf\n" + CANONICAL)),
    "events without a name or an event line": playing(
        b"HTTP/1.0 200 OK\r\n\r\n", *(bytes([byte]) for byte in re.sub(rb"event: .*\n", b"", CANONICAL)), end="close"
    ),
    "events byte by byte": playing(OPEN_ENDED, *(bytes([byte]) for byte in CANONICAL), end="close"),
    "events whose sentinel is missing": playing(OPEN_ENDED + b"".join(FRAMES[:-1]), end="close"),
    "events whose last line end is missing": playing(OPEN_ENDED + b"".join(FRAMES[:-1])[:-2], end="close"),
    "after 100 Continue": playing(b"HTTP/1.1 100 Continue\r\n\r\n", whole(FINAL, JSON)),
    "after 103 Early Hints": playing(b"HTTP/1.1 103 Early\r\nLink: </x>\r\n\r\n", whole(CANONICAL, SSE)),
}


@pytest.mark.parametrize("play", WHOLE.values(), ids=WHOLE)
async def test_an_answer_has_the_form_that_was_requested(gateway: str, upstream: RawUpstream, play):
    """A body is converted into events that the SDK's helper accepts, and a stream into a body."""
    upstream.play = play
    body = await ask(gateway, post())
    stream = await ask(gateway, STREAM)
    async with (
        connect_sdk(gateway, "x") as client,
        client.responses.stream(model="m", input="Hi") as helped,
    ):
        final = await helped.get_final_response()

    assert (body.status, body.headers["content-type"]) == (200, "application/json")
    assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert orjson.loads(body.body.removeprefix(b"\xef\xbb\xbf")) == orjson.loads(FINAL)
    assert events(stream.body)[-2]["response"] == orjson.loads(FINAL)
    assert events(stream.body)[-1] == "[DONE]"
    assert final.output_text == "Hello."
    assert {body.headers.get("content-encoding"), stream.headers.get("content-encoding")} == {None}


ODD = {
    "a lone surrogate": (rb"\ud800", "?"),
    "an infinity": (b'","metadata":-Infinity,"x":"', ""),
    "a byte that is no UTF-8": (b"\xff", "\ufffd"),
}


@pytest.mark.parametrize(("odd", "text"), ODD.values(), ids=ODD)
async def test_json_that_only_lenient_readers_accept_passes_as_it_is(gateway, upstream, odd: bytes, text: str):
    """The bytes of a body and of frames are the upstream's; what the gateway composes of them is valid JSON."""
    body, frames = FINAL.replace(b"Hello.", b"Hello." + odd), CANONICAL.replace(b'"Hello."', b'"Hello.%b"' % odd)
    upstream.play = playing(whole(body, JSON))
    relayed, composed = await ask(gateway, post()), await ask(gateway, STREAM)
    upstream.play = playing(whole(frames, SSE))
    streamed, converted = await ask(gateway, STREAM), await ask(gateway, post())

    assert (relayed.body, streamed.body) == (body, frames)
    assert b"Hello.%b" % text.encode() in converted.body
    assert orjson.loads(converted.body)["status"] == events(composed.body)[-2]["response"]["status"] == "completed"


ODD_FRAMES = {
    "data that is no JSON": b"event: response.output_item.done\ndata: {nope\n\n",
    "data that is no object": b"data: null\n\ndata: 1\n\ndata: []\n\n",
    "no data": b"event: response.output_text.delta\n\n",
    "an item that is none": b'data: {"type":"response.output_item.added","output_index":"x","item":7}\n\n',
    "an item without its end": b'data: {"type":"response.output_item.added","output_index":5,"item":null}\n\n',
    "a response that is none": b'data: {"type":"response.in_progress","response":[1]}\n\n',
    "a number that is none": b'data: {"type":"response.created","sequence_number":-Infinity,"response":null}\n\n',
    "odd fields": b"id: 5\nretry: x\nnonsense\n\n",
    "a type that is none": b'data: {"type":["response.completed"]}\n\n',
}


@pytest.mark.parametrize("odd", ODD_FRAMES.values(), ids=ODD_FRAMES)
async def test_an_odd_frame_fails_no_stream(gateway: str, upstream: RawUpstream, odd: bytes):
    """It passes as it is, and the response ends as it would without it."""
    frames = b"".join([*FRAMES[:6], odd, *FRAMES[6:]])
    upstream.play = playing(whole(frames, SSE))
    streamed, converted = await ask(gateway, STREAM), await ask(gateway, post())

    assert streamed.body == frames
    assert (converted.status, orjson.loads(converted.body)) == (200, orjson.loads(FINAL))


REFUSALS = {
    "500 in the envelope": (whole(REFUSAL, JSON, status="500 Oops"), 500, REFUSAL),
    "404 in the envelope": (whole(REFUSAL, JSON, status="404 No"), 404, REFUSAL),
    "403 in the envelope": (whole(REFUSAL, "content-type: application/json; a=b", status="403 No"), 403, REFUSAL),
    "429 in the envelope": (whole(REFUSAL, JSON, status="429 Later"), 429, REFUSAL),
    "500 with HTML": (whole(b"<html>sk-gateway</html>", "Content-Type: text/html", status="500 Oops"), 500, None),
    "503 with nothing": (whole(b"", status="503 Oops"), 503, None),
    "502 with text": (whole(b"bad gateway", "Content-Type: text/plain", status="502 Oops"), 502, None),
    "422 with a detail": (whole(b'{"detail":[]}', JSON, status="422 No"), 422, None),
    "400 with a word": (whole(b'{"error":"no"}', JSON, status="400 No"), 400, None),
    "413 with a list": (whole(b"[]", JSON, status="413 No"), 413, None),
}


LENGTH = b'"code":"context_length_exceeded","message":"Too long.","type":"invalid_request_error","param":"input"'
TOO_LONG = (400, "context_length_exceeded", "Too long.")
# Errors that come with a status of success, as bodies and as the first event of a stream.
UNCALLED = {
    "an object in a body": (whole(b'{ "error": {%b} }' % LENGTH, JSON), *TOO_LONG),
    "a text in a body": (whole(b'{"error" : "No model."}', JSON), 502, "upstream_error", "No model."),
    "a flat body": (
        whole(b'{"object":"error","message":"Busy.","type":"x","code":503}', JSON), 503, "503", "Busy."
    ),
    "a key that was refused": (
        whole(b'{"error":{"message":"sk-gateway","code":401}}', JSON), 502, "upstream_auth",
        "The upstream refused the gateway's own credentials. Try again later, or ask the operator of this gateway.",
    ),
    "a nested event": (whole(frame_of("error", b'{"type":"error","error":{%b}}' % LENGTH), SSE), *TOO_LONG),
    "a flat event": (whole(b': hi\n\ndata:{%b , "type" : "error"}\r\n\r\n' % LENGTH.replace(b',"type":"invalid_request_error"', b""), SSE), *TOO_LONG),
    "an event without a type": (whole(b'data: {"x": 1, "error" : {%b}}\n\ndata: [DONE]\n\n' % LENGTH, SSE), *TOO_LONG),
    "an event of words": (whole(b"event: error\ndata: It broke.\n\n", SSE), 502, "upstream_error", "It broke."),
    "an event with a detail": (whole(b'data: {"detail":"No.","status":429}\n\n', SSE), 429, "upstream_error", "No."),
    "an event about the key": (
        whole(b'data: {"error":{"message":"sk-gateway","status":401}}\n\n', SSE), 502, "upstream_auth",
        "The upstream refused the gateway's own credentials. Try again later, or ask the operator of this gateway.",
    ),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize(("data", "status", "code", "message"), UNCALLED.values(), ids=UNCALLED)
async def test_an_error_with_a_status_of_success_is_a_refusal(gateway, upstream, call, data, status, code, message):  # noqa: PLR0913, PLR0917
    """Nothing was sent yet, so that its reason comes with a status of its own."""
    upstream.play = playing(data)
    answer = await ask(gateway, post(call))

    assert (answer.status, answer.error["code"], answer.error["message"]) == (status, code, message)
    assert answer.error["param"] == ("input" if code == "context_length_exceeded" else None)
    assert "sk-gateway" not in str(answer)


LATE_ERRORS = {
    "nested": frame_of("error", b'{"type":"error","sequence_number":6,"error":{%b}}' % LENGTH),
    "without a type": b'data: {"error": {%b}}\n\n' % LENGTH,
    "without a type, then the sentinel": b'data: {"error":{%b}}\n\ndata: [DONE]\n\n' % LENGTH,
}


@pytest.mark.parametrize("error", LATE_ERRORS.values(), ids=LATE_ERRORS)
@pytest.mark.parametrize("end", ["close", "reset", "hang"])
async def test_the_reason_of_an_error_in_a_stream_survives(short_timeout_gateway, upstream, error: bytes, end: str):
    """A stream ends with it, however the upstream ends; a call for a body gets its status."""
    upstream.play = playing(OPEN_ENDED + FIRST_FRAMES, error, end=end)
    stream, body = await ask(short_timeout_gateway, STREAM), await ask(short_timeout_gateway, post())
    *_, failed, _ = events(stream.body)
    last_error = [event for event in events(stream.body)[:-1] if event.get("type") == "error"][-1]

    assert failed["response"]["error"] == {"code": "server_error", "message": "Too long."}  # a code that clients know
    assert last_error["error"]["code"] == "context_length_exceeded"
    assert stream.body.startswith(FIRST_FRAMES + error.replace(b"data: [DONE]\n\n", b""))
    assert (body.status, body.error["code"], body.error["message"]) == TOO_LONG
    assert (body.error["type"], body.error["param"]) == ("invalid_request_error", "input")


@BOTH
@pytest.mark.parametrize(("data", "status", "body"), REFUSALS.values(), ids=REFUSALS)
async def test_a_refusal_keeps_its_status_and_its_envelope(gateway, upstream, call, data, status, body):
    """A body that is not an envelope is replaced by one."""
    upstream.play = playing(data)
    answer = await ask(gateway, post(call))

    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert body is None or answer.body == body
    if body is None:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        assert (answer.error["code"], answer.error["type"]) == ("upstream_error", kind)
    assert "sk-gateway" not in str(answer)


async def test_a_refused_gateway_key_is_not_retried(gateway: str, upstream: RawUpstream):
    """A retry by the caller would fail as well."""
    upstream.play = FAULTS["401"][0]

    assert (await ask(gateway, post())).headers["x-should-retry"] == "false"


async def test_an_upstream_that_refuses_connections_is_a_502(start_gateway):
    """The error comes without waiting for `connect_timeout_s`."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        gateway = await start_gateway(tables(f"http://127.0.0.1:{reserved.getsockname()[1]}/v1"))
        answer = await ask(gateway, STREAM)

    assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")


async def test_an_upstream_that_accepts_no_connection_is_a_504(start_gateway):
    """The error comes after `connect_timeout_s`."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        with socket.create_connection(address):  # fills the only place in its queue
            gateway = await start_gateway(tables(f"http://127.0.0.1:{address[1]}/v1", connect_timeout_s=0.3))
            answer = await ask(gateway, post())

    assert (answer.status, answer.error["code"]) == (504, "upstream_connect_timeout")
