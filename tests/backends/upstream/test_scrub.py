"""The gateway's own key is removed from the answers of an upstream."""

import re
from base64 import b64decode, b64encode
from typing import Any
from urllib.parse import quote, unquote

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.upstream.scrub import REPLACEMENT, Scrubber, StreamScrubber
from proxy.wire.event import Event, Run
from proxy.wire.large_bytes import WINDOW_BYTES
from tests.raw import RawUpstream, ask, no_tasks_left, playing, post, whole  # noqa: F401
from tests.upstream import CANONICAL, final_body

KEY = "sk-gateway/with/slashes+plus=0123456789"
IN_JSON = KEY.replace("/", "\\/")
FOR_WEB = KEY.replace("+", "\\u002B").replace("=", "\\u003D")
IN_URL, IN_URL_LOWER = (
    quote(KEY, safe=""),
    quote(KEY, safe="").replace("%2F", "%2f").replace("%2B", "%2b").replace("%3D", "%3d"),
)
BASE64 = {f"base64 after {n} bytes": b64encode(b"user:"[:n] + KEY.encode() + b":more").decode() for n in range(4)}
BASE64_URL = {f"{name}, URL-safe": text.replace("+", "-").replace("/", "_") for name, text in BASE64.items()}
FORMS = {
    "plain": KEY,
    "JSON": IN_JSON,
    "web": FOR_WEB,
    "URL": IN_URL,
    "URL in lower case": IN_URL_LOWER,
    **BASE64,
    **BASE64_URL,
}


def reveals(text: str) -> bool:
    """Whether a text has the key, or a part of it from which the rest can be guessed, in any form."""
    decoded = [text, unquote(text), text.replace("\\/", "/"), text.replace("\\u002B", "+").replace("\\u003D", "=")]
    for run in re.findall(r"[A-Za-z0-9+/_-]{16,}", text):
        for cut in range(4):
            part = run[cut:].replace("-", "+").replace("_", "/")
            decoded.append(b64decode(part[: len(part) // 4 * 4]).decode("latin-1"))
    return any(KEY[3:-3] in form for form in decoded)


JSON, SSE = "Content-Type: application/json", "Content-Type: text/event-stream"
CALL, STREAM = post(), post(b'{"model":"m","stream":true}')
FAILED = (
    b'event: error\ndata: {"type":"error","sequence_number":0,"message":"MESSAGE","code":null,"param":null}\n\n'
    b'event: response.failed\ndata: {"type":"response.failed","sequence_number":1,"response":'
    b'{"id":"r","status":"failed","output":[],"error":{"code":"server_error","message":"MESSAGE"}}}\n\n'
)
ECHO = orjson.dumps(
    {"error": {"message": f"Incorrect API key provided: {KEY}.", "type": "x", "param": None, "code": None}}
)


def test_data_without_the_secret_is_the_same_object():
    """The usual path makes no copy."""
    data, batch = b"a" * 1000, [Event("x", b"data: 1\n\n"), Run(b"data: 2\n\n")]

    assert Scrubber(KEY).data(data) is data
    assert Scrubber(KEY).batch(batch) is batch


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_the_secret_is_replaced(form: str):
    """Servers escape it in JSON, encode it for a URL, or quote a header in base64, wherever the key begins in it."""
    scrubber = Scrubber(KEY)
    text, data = scrubber.text(f"a {form} b {form}"), scrubber.data(f"a {form}".encode()).decode()
    event = scrubber.batch([Event("error", f'data: {{"type":"error","message":"{form}"}}\n\n'.encode())])

    assert reveals(form)
    assert not reveals(text)
    assert not reveals(data)
    assert not reveals(event[0].sse.decode())
    assert text.count(REPLACEMENT) == 2


@pytest.mark.parametrize("unit", [Run, lambda frames: Event("response.completed", frames, {})])
def test_the_secret_is_replaced_wherever_it_is_in_large_data(unit: Any):
    """Large data is searched in windows, also where one ends."""
    places = (0, WINDOW_BYTES - 5, 2 * WINDOW_BYTES, 3 * WINDOW_BYTES - len(KEY))
    data = bytearray(b" " * 3 * WINDOW_BYTES)
    for place in places:
        data[place : place + len(KEY)] = KEY.encode()
    text = b'data: {"a":"%b"}' % data

    assert Scrubber(KEY).data(bytes(data)) == bytes(data).replace(KEY.encode(), REPLACEMENT.encode())
    assert KEY.encode() not in Scrubber(KEY).batch([unit(text)])[0].sse


def test_a_secret_that_json_escapes_is_replaced():
    """Examples are quotes and backslashes."""
    secret = 'sk-"quoted"\\and-more'

    assert Scrubber(secret).data(orjson.dumps({"a": secret})) == orjson.dumps({"a": REPLACEMENT})


def test_events_and_runs_keep_their_order():
    """An event is parsed again after the replacement."""
    event = Event("error", b'event: error\ndata: {"type":"error","message":"%b"}\n\n' % KEY.encode())
    batch = Scrubber(KEY).batch([Run(b"data: %b\n\n" % KEY.encode()), event])

    assert [type(unit) for unit in batch] == [Run, Event]
    assert batch[0].sse == b"data: [redacted]\n\n"
    assert batch[1].type == "error"
    assert batch[1].data["message"] == REPLACEMENT


@pytest.mark.parametrize("secret", [None, "", "short"])
def test_an_empty_or_short_secret_is_not_replaced(secret: str | None):
    """A short text could occur anywhere by chance."""
    assert Scrubber(secret).text("a short text") == "a short text"


@pytest.fixture
async def upstream():
    async with RawUpstream(playing(whole(final_body(), JSON))) as server:
        yield server


@pytest.fixture
async def gateway(upstream: RawUpstream, start_gateway, monkeypatch: pytest.MonkeyPatch) -> str:
    """A gateway with a key of its own."""
    monkeypatch.setenv("GATEWAY_KEY", KEY)
    backend = {"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1", "api_key": "env:GATEWAY_KEY"}
    return await start_gateway({"backend": [backend], "route": [{"model": "*", "backend": "fake"}]})


def with_key(data: bytes, form: str = KEY) -> bytes:
    """Return a recorded answer with the key in its text."""
    assert b"Hello" in data
    return data.replace(b"Hello", f"Hello {form}".encode())


ECHOES = {
    "a 403": whole(ECHO, JSON, status="403 Forbidden"),
    "a 429": whole(ECHO, JSON, status="429 Too Many Requests"),
    "a 401": whole(ECHO, JSON, status="401 Unauthorized"),
    "a 500": whole(ECHO, JSON, status="500 Error"),
    "a 400 with escaped slashes": whole(ECHO.replace(KEY.encode(), IN_JSON.encode()), JSON, status="400 Bad"),
    "a 502 that is not JSON": whole(f"<b>{KEY}</b>".encode(), f"Content-Type: text/{KEY}", status="502 Error"),
    "a type that is no response": whole(b"<html>", f"Content-Type: text/{KEY}"),
    "headers": whole(final_body(), JSON, f"X-Debug: Bearer {KEY}", f"X-Request-Id: {KEY}", f"OpenAI-Version: {KEY}"),
    "a header in base64": whole(final_body(), JSON, f"OpenAI-Version: Basic {BASE64['base64 after 1 bytes']}"),
    "headers of a refusal": whole(ECHO, JSON, f"WWW-Authenticate: Bearer {KEY}", status="403 Forbidden"),
    "a body": whole(with_key(final_body()), JSON),
    "a stream": whole(with_key(CANONICAL), SSE),
    "a body with a form for the web": whole(with_key(final_body(), FOR_WEB), JSON),
    "a stream with base64": whole(FAILED.replace(b"MESSAGE", BASE64["base64 after 2 bytes"].encode()), SSE),
    "a stream that breaks off": whole(with_key(CANONICAL)[:-300], SSE),
}


@pytest.mark.parametrize("data", [CALL, STREAM], ids=["json", "stream"])
@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
async def test_the_key_never_reaches_a_caller_or_a_log(
    gateway: str, upstream: RawUpstream, logged, capfd, echo, data: bytes
):
    """The upstream repeats it in a header, a body, an event or an error."""
    upstream.play = playing(echo)
    answer = await ask(gateway, data)
    output = f"{answer.headers} {answer.body.decode()} {logged} {''.join(capfd.readouterr())}"

    assert KEY.encode() in upstream.requests[0]
    assert not reveals(output)


async def test_an_answer_that_repeats_the_key_is_otherwise_unchanged(gateway: str, upstream: RawUpstream):
    """Only the key is replaced."""
    upstream.play = playing(whole(with_key(CANONICAL), SSE))
    stream = await ask(gateway, STREAM)
    upstream.play = playing(whole(with_key(final_body()), JSON))
    body = await ask(gateway, CALL)

    assert stream.body == CANONICAL.replace(b"Hello", b"Hello [redacted]")
    assert orjson.loads(body.body) == orjson.loads(final_body().replace(b"Hello", b"Hello [redacted]"))


@given(st.lists(st.sampled_from(["ab", "abab", "ababac", "c", "ababacabab", "x", "aba"]), max_size=12))
def test_a_body_in_chunks_is_scrubbed_like_a_whole_one(pieces: list[str]):
    """Wherever it is split, also within a secret that repeats its own beginning."""
    scrubber = Scrubber("ababacab")
    stream = StreamScrubber(scrubber)
    chunks = [stream.feed(piece.encode()) for piece in pieces]

    assert b"".join([*chunks, stream.close()]) == scrubber.data("".join(pieces).encode())


def test_a_chunk_that_cannot_begin_a_secret_is_not_held_back():
    """It is the same object; without a secret everything passes."""
    data = b"data: 1\n\n"

    assert StreamScrubber(Scrubber(KEY)).feed(data) is data
    assert StreamScrubber(Scrubber(None)).feed(data) is data
