"""Relayed paths, through a real gateway in front of a real upstream: what passes, what is refused, what is recorded."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import ClientPayloadError, FormData, web
from openai import BadRequestError

from tests.raw import RawUpstream, ask, no_tasks_left, playing, post, whole, wire  # noqa: F401
from tests.sdk import connect_sdk
from tests.upstream import FakeUpstream

RELAYS = [
    "/v1/embeddings", "/v1/chat/completions", "/v1/files/*", "/v1/audio/*", "/v1/vector_stores/*", "/v1/moderations",
]  # fmt: skip
EMBEDDING = (
    b'{"object": "list",  "model":"text-embedding-3-small","data":[{"object":"embedding","index":0,"embedding":'
    b'[0.1,1E-9,-0.0]}],"usage":{"prompt_tokens":7,"total_tokens":7}}\n'
)
CHAT = [
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","model":"m","choices":[]}\n\n',
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","model":"m-2026","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}}\n\n',
    b"data: [DONE]\n\n",
]
KEY = "sk-gateway-secret"


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_KEY", KEY)
    for name in ("ANNA", "BEN"):
        monkeypatch.setenv(f"{name}_KEY", f"{name.lower()}-key")


def tables_for(address: str, **more: Any) -> dict[str, Any]:
    """Return config tables with all RELAYS; `more` replaces whole tables."""
    backend = {"name": "fake", "use": "upstream", "base_url": f"{address}/v1", "api_key": "env:GATEWAY_KEY"}
    return {
        "backend": [backend],
        "route": [{"model": "*", "backend": "fake"}],
        "relay": [{"path": path, "backend": "fake"} for path in RELAYS],
    } | more


@asynccontextmanager
async def serving(answer) -> AsyncIterator[str]:
    """Serve every request by `answer`, which reads the body itself, and give the address."""
    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def gateway(upstream: FakeUpstream, start_gateway) -> str:
    """A gateway without policies and callers."""
    return await start_gateway(tables_for(upstream.address))


def answering(body: bytes, content_type: str = "application/json", status: int = 200, **headers: str):
    """Return an upstream's answer with this body."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(
            body=body, status=status, headers={"Content-Type": content_type}
            | {name.replace("_", "-"): value for name, value in headers.items()},
        )  # fmt: skip

    return answer


async def test_a_json_request_and_its_answer_pass_byte_for_byte(gateway: str, upstream: FakeUpstream, http):
    """White space, escapes and the spelling of numbers stay; the upstream gets the gateway's key."""
    sent = b'{ "input" :"\\u00e4",\n"model":"text-embedding-3-small", "dimensions": 1e2 }'
    upstream.answer = answering(EMBEDDING, "application/json; charset=utf-8", x_request_id="up-1", openai_version="1")
    headers = {"Content-Type": "application/json", "Authorization": "Bearer mine", "Cookie": "a=b"}
    async with http.post(f"{gateway}/v1/embeddings?x=1", data=sent, headers=headers) as answer:
        body = await answer.read()
    (received,) = upstream.requests

    assert (received.method, received.target, received.raw) == ("POST", "/v1/embeddings?x=1", sent)
    assert received.headers["Authorization"] == f"Bearer {KEY}"
    assert "Cookie" not in received.headers
    assert (answer.status, body) == (200, EMBEDDING)
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert answer.headers["x-upstream-request-id"] == "up-1"
    assert answer.headers["openai-version"] == "1"
    assert answer.headers["x-request-id"].startswith("req_")


async def test_the_sdk_uses_relayed_paths(gateway: str, upstream: FakeUpstream):
    """Embeddings, chat as a stream, uploads, downloads and audio."""
    async with connect_sdk(gateway, "any") as client:
        upstream.answer = answering(EMBEDDING)
        made = await client.embeddings.create(model="text-embedding-3-small", input="Hi", encoding_format="float")
        upstream.answer = answering(b"".join(CHAT), "text/event-stream")
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hi"}], stream=True
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
        upstream.answer = answering(b'{"id":"file-1","object":"file","filename":"a.txt"}')
        file = await client.files.create(file=("a.txt", b"\x00\xff{"), purpose="user_data")
        upstream.answer = answering(b"\x00\xff{", "application/octet-stream", Content_Disposition="attachment")
        content = await client.files.content("file-1")
        upstream.answer = answering(b"ID3\x00", "audio/mpeg")
        speech = await client.audio.speech.create(model="tts-1", voice="alloy", input="Hi")

    assert made.data[0].embedding == [0.1, 1e-9, -0.0]
    assert [chunk.model for chunk in chunks] == ["m", "m-2026"]
    assert file.id == "file-1"
    assert upstream.requests[2].headers["Content-Type"].startswith("multipart/form-data; boundary=")
    assert b"\x00\xff{" in upstream.requests[2].raw
    assert (content.content, speech.content) == (b"\x00\xff{", b"ID3\x00")
    assert upstream.requests[3].target == "/v1/files/file-1/content"


async def test_a_stream_passes_untouched_and_as_it_arrives(gateway: str, upstream: FakeUpstream, http):
    """No comment, event or sentinel is added, not even for another dialect of line ends."""
    received = asyncio.Event()
    first, second = b': hello\r\n\r\ndata: {"a":1}\r\n\r\n', b"id: 7\r\nevent: x\r\ndata: {}\r\n\r\n"

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(first)
        await received.wait()
        await response.write(second)
        return response

    upstream.answer = answer
    async with http.post(f"{gateway}/v1/chat/completions", json={"model": "m", "stream": True}) as reply:
        begun = await reply.content.readexactly(len(first))
        received.set()
        rest = await reply.content.read()

    assert (begun, rest) == (first, second)
    assert reply.headers["Content-Type"] == "text/event-stream"
    assert reply.headers["X-Accel-Buffering"] == "no"


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_a_body_that_is_no_json_is_sent_on_while_it_is_received(is_chunked: bool, start_gateway, http):
    """The upstream has the beginning while the client still sends."""
    begun, seen = asyncio.Event(), bytearray()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        while chunk := await request.content.readany():
            seen.extend(chunk)
            begun.set()
        return web.json_response({"id": "file-1", "length": request.content_length})

    async def parts():
        yield b"part one, "
        await begun.wait()
        yield b"part two"

    async with serving(answer) as address:
        gateway = await start_gateway(tables_for(address))
        headers = {"Content-Type": "application/octet-stream"} | ({} if is_chunked else {"Content-Length": "18"})
        async with http.post(f"{gateway}/v1/files", data=parts(), headers=headers) as reply:
            created = await reply.json()

    assert bytes(seen) == b"part one, part two"
    assert created["length"] == (None if is_chunked else 18)


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_a_body_beyond_the_limit_is_refused(is_chunked: bool, upstream: FakeUpstream, start_gateway, http):
    """A declared size is refused before the upstream is asked, another one ends the request to it."""
    gateway = await start_gateway(tables_for(upstream.address, server={"max_body_bytes": 100_000}))

    async def parts():
        for _ in range(40):
            yield b"x" * 10_000

    headers = {"Content-Type": "audio/wav"} | ({} if is_chunked else {"Content-Length": "400000"})
    async with http.post(f"{gateway}/v1/audio/transcriptions", data=parts(), headers=headers) as answer:
        error = (await answer.json())["error"]

    assert (answer.status, "the limit is 100000 bytes" in error["message"]) == (413, True)
    assert upstream.requests == []


@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
async def test_a_body_that_breaks_off_reaches_the_upstream_as_broken(framing: str, start_gateway):
    """The upstream must not take the beginning of a file for the file."""
    begun, failed = asyncio.Event(), asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        try:
            while await request.content.readany():
                begun.set()
        except Exception:
            failed.set()
            raise
        raise AssertionError("the body was complete")

    async with serving(answer) as address:
        gateway = await start_gateway(tables_for(address))
        head = f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n{framing}\r\n\r\n"
        async with wire(gateway) as connection:
            await connection.send(head.encode() + b"A\r\n0123456789\r\n")
            await begun.wait()
            await connection.close()
        await failed.wait()


async def test_a_slow_body_is_timed_out(start_gateway, upstream: FakeUpstream):
    """As any other body is."""
    gateway = await start_gateway(tables_for(upstream.address, server={"body_timeout_s": 0.2}))
    head = b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
    answer = await ask(gateway, head + b"x" * 10)

    assert (answer.status, answer.error["code"]) == (408, "request_timeout")


SECRETS = {
    "a body": (answering(b'{"echo":"Bearer ' + KEY.encode() + b'"}'), b'{"echo":"Bearer [redacted]"}'),
    "a refusal": (
        answering(b'{"error":{"message":"Bad key ' + KEY.encode() + b'"}}', status=403),
        b'{"error":{"message":"Bad key [redacted]"}}',
    ),
    "a file": (answering(KEY.encode(), "text/plain"), b"[redacted]"),
}


@pytest.mark.parametrize("case", SECRETS)
async def test_the_gateways_key_is_removed_from_answers(case: str, gateway: str, upstream: FakeUpstream, http):
    """Some servers echo what they received."""
    upstream.answer, expected = SECRETS[case]
    async with http.get(f"{gateway}/v1/files/file-1") as answer:
        assert await answer.read() == expected


async def test_a_key_that_is_split_over_chunks_is_removed(gateway: str, upstream: FakeUpstream, http):
    """No chunk has all of it; what only begins like it passes."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for position in range(len(KEY)):
            await response.write(KEY[position].encode())
        await response.write(b"|" + KEY[:9].encode())
        return response

    upstream.answer = answer
    async with http.post(f"{gateway}/v1/chat/completions", json={"model": "m"}) as reply:
        assert await reply.read() == b"[redacted]|" + KEY[:9].encode()


async def test_a_header_with_the_key_is_scrubbed_and_those_of_a_connection_do_not_pass(gateway: str, upstream, http):
    """As for responses."""
    upstream.answer = answering(b"{}", openai_echo=KEY, Set_Cookie="a=b", Location="/x", X_Other="1")
    async with http.get(f"{gateway}/v1/files/file-1") as answer:
        headers = answer.headers

    assert headers["openai-echo"] == "[redacted]"
    assert not {"Set-Cookie", "Location", "X-Other"} & set(headers)
    assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")


REFUSALS = {
    "its own key": (answering(b"{}", status=401), 502, "upstream_auth"),
    "a redirect": (answering(b"", status=302, Location="http://127.0.0.1:1/"), 502, "upstream_invalid_response"),
    "a page": (answering(b"<html>", "text/html", status=404), 404, "upstream_error"),
    "its own error": (answering(b'{"error":{"code":"rate_limit_exceeded"}}', status=429), 429, "rate_limit_exceeded"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_refusals_of_an_upstream_are_those_of_responses(case: str, gateway: str, upstream: FakeUpstream, http):
    """A redirect is never followed."""
    upstream.answer, status, code = REFUSALS[case]
    async with http.post(f"{gateway}/v1/moderations", json={"input": "Hi"}) as answer:
        error = (await answer.json())["error"]

    assert (answer.status, error["code"]) == (status, code)
    assert len(upstream.requests) == 1


async def test_an_answer_that_breaks_off_is_not_completed(start_gateway, http):
    """A regular end would look like a whole file."""
    broken = whole(b"x" * 1000, "Content-Type: application/pdf")[:-500]
    async with RawUpstream(playing(broken, end="close")) as upstream:
        gateway = await start_gateway(tables_for(upstream.address))
        async with http.get(f"{gateway}/v1/files/file-1/content") as answer:
            with pytest.raises(ClientPayloadError):
                await answer.read()


async def test_an_answer_beyond_the_limit_is_cut_off(start_gateway, upstream: FakeUpstream, http):
    """The limit is that of the backend; before the first byte it is an error."""
    tables = tables_for(upstream.address)
    tables["backend"][0]["max_answer_bytes"] = 10
    gateway = await start_gateway(tables)
    upstream.answer = answering(b'{"a": "too long"}')
    async with http.post(f"{gateway}/v1/moderations", json={}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (502, "upstream_too_large")


async def test_an_upstream_that_cannot_be_reached_is_a_502(start_gateway, http):
    gateway = await start_gateway(tables_for("http://127.0.0.1:1"))
    form = FormData({"purpose": "user_data"})
    form.add_field("file", io.BytesIO(b"x" * 100_000), filename="a")
    async with http.post(f"{gateway}/v1/files", data=form) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (502, "upstream_unreachable")


async def test_an_upstream_that_does_not_answer_before_the_deadline_is_a_504(start_gateway, upstream, http):
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    upstream.answer = answer
    gateway = await start_gateway(tables_for(upstream.address, server={"deadline_s": 0.1}))
    async with http.get(f"{gateway}/v1/files") as reply:
        assert (reply.status, (await reply.json())["error"]["code"]) == (504, "deadline_exceeded")
    await upstream.disconnected.wait()


async def test_a_client_that_disconnects_ends_the_work(gateway: str, upstream: FakeUpstream):
    """The upstream sees it."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(CHAT[0])
        await asyncio.Event().wait()
        return response

    upstream.answer = answer
    async with wire(gateway) as connection:
        await connection.send(post(b'{"model":"m","stream":true}', target="/v1/chat/completions"))
        await connection.line()
        await connection.close()
    await upstream.disconnected.wait()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/files"),
        ("DELETE", "/v1/files/file-1"),
        ("HEAD", "/v1/files/file-1"),
        ("POST", "/v1/files/a/cancel"),
    ],
)
async def test_methods_without_a_body_pass(method: str, path: str, gateway: str, upstream: FakeUpstream, http):
    """An SDK sends a content type with an empty body. The upstream is asked with GET for HEAD."""
    upstream.answer = answering(b'{"id":"x"}')
    async with http.request(method, gateway + path, headers={"Content-Type": "application/json"}) as answer:
        body = await answer.read()

    assert (answer.status, body) == (200, b"" if method == "HEAD" else b'{"id":"x"}')
    asked = "GET" if method == "HEAD" else method
    assert [(request.method, request.target, request.raw) for request in upstream.requests] == [(asked, path, b"")]


async def test_other_methods_are_refused(gateway: str, upstream: FakeUpstream, http):
    async with http.patch(f"{gateway}/v1/files/file-1", json={}) as answer:
        assert (answer.status, set(answer.headers["Allow"].split(", "))) == (405, {"GET", "HEAD", "POST", "DELETE"})


async def test_the_longest_path_decides_which_backend_answers(start_gateway, upstream: FakeUpstream, http):
    """A path without a wildcard is matched first."""
    async with FakeUpstream() as other:
        tables = tables_for(upstream.address)
        tables["backend"].append(tables["backend"][0] | {"name": "other", "base_url": f"{other.address}/api"})
        tables["relay"] += [
            {"path": "/v1/audio/speech", "backend": "other"},
            {"path": "/v1/files/cached/*", "backend": "other"},
        ]
        gateway = await start_gateway(tables)
        for path in ("audio/speech", "audio/translations", "files/cached", "files/cached/a", "files/file-1"):
            async with http.get(f"{gateway}/v1/{path}"):
                pass

    assert [request.target for request in other.requests] == [
        "/api/audio/speech",
        "/api/files/cached",
        "/api/files/cached/a",
    ]
    assert [request.target for request in upstream.requests] == ["/v1/audio/translations", "/v1/files/file-1"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/../responses", "/v1/files/..", "/v1/files/./a", "/v1/files/%2e%2e/responses", "/v1/files/..%2fresponses",
        "/v1/files//responses", "/v1/files/a/", "/v1/files/a;b", "/v1/files/a\\..\\b", "/v1/files/a%00", "/v1/files/a%2Fb",
    ],
)  # fmt: skip
async def test_a_path_that_an_upstream_could_read_as_another_is_refused(path: str, gateway: str, upstream):
    """It would be a way to paths that are not relayed."""
    answer = await ask(gateway, post(b"{}", target=path))

    assert (answer.status, upstream.requests) == (404, [])


async def test_the_answer_to_an_unknown_path_says_what_is_relayed(gateway: str, start_gateway, upstream, http):
    """It is JSON in the protocol's form."""
    async with http.post(f"{gateway}/v1/images/generations", json={}) as answer:
        listed = (await answer.json())["error"]
    bare = await start_gateway(tables_for(upstream.address, relay=[]))
    async with http.post(f"{bare}/v1/embeddings", json={}) as answer:
        error = (await answer.json())["error"]

    assert (answer.status, error["type"], error["code"]) == (404, "invalid_request_error", None)
    assert "An operator can relay other paths of an upstream with [[relay]]." in error["message"]
    assert "Relayed to an upstream: /v1/embeddings, /v1/chat/completions, /v1/files/*" in listed["message"]


async def test_a_request_needs_a_key(start_gateway, upstream: FakeUpstream, http):
    """As everything else does."""
    gateway = await start_gateway(tables_for(upstream.address, caller=[{"name": "anna", "key": "env:ANNA_KEY"}]))
    async with http.get(f"{gateway}/v1/files") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (401, "invalid_api_key")


DISGUISES = [
    ("application/octet-stream", b' \n{"model":"secret"}', "send application/json"),
    ("multipart/form-data; boundary=x", b'\xef\xbb\xbf{"model":"secret"}', "send application/json"),
    ("audio/wav", b'\xff\xfe{\x00"\x00', "send application/json"),
    ("text/plain", b'{"model":"secret"}', "are relayed"),
    ("application/x-www-form-urlencoded", b"model=secret", "are relayed"),
]


@pytest.mark.parametrize(("content_type", "body", "message"), DISGUISES)
async def test_json_under_another_type_is_refused(
    content_type: str, body: bytes, message: str, gateway, upstream, http
):
    """A lenient upstream would read it, and no policy would have."""
    async with http.post(f"{gateway}/v1/files", data=body, headers={"Content-Type": content_type}) as answer:
        error = (await answer.json())["error"]

    assert (answer.status, message in error["message"], upstream.requests) == (415, True, [])


@pytest.mark.parametrize("framing", ["Content-Length: 20", "Transfer-Encoding: chunked"])
async def test_json_behind_white_space_that_arrives_before_it_is_refused(framing: str, start_gateway):
    """The upstream has only the white space: of a request that breaks off."""
    begun, seen = asyncio.Event(), bytearray()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        while chunk := await request.content.readany():
            seen.extend(chunk)
            begun.set()
        raise AssertionError("the body was complete")

    blank, rest = b" \n", b'{"model":"secret"}'
    if framing != "Content-Length: 20":
        blank, rest = [b"%x\r\n%b\r\n" % (len(part), part) for part in (blank, rest)]
    async with serving(answer) as address:
        gateway = await start_gateway(tables_for(address))
        head = f"POST /v1/audio/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: audio/wav\r\n{framing}\r\n\r\n"
        async with wire(gateway) as connection:
            await connection.send(head.encode() + blank)
            await begun.wait()
            await connection.send(rest)
            refused = await connection.answer()

    assert (refused.status, "send application/json" in refused.error["message"], bytes(seen)) == (415, True, b" \n")


@pytest.mark.parametrize("query", ["model=secret", "Model=x", "store=true"])
async def test_a_field_of_a_body_in_the_query_is_refused(query: str, gateway: str, upstream: FakeUpstream, http):
    """For bodies of every type, and for none; a list may be filtered by one."""
    form = FormData({"a": "b"}, default_to_multipart=True)
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    for body in ({"json": {"model": "m"}}, {"data": form}, {}, {"headers": headers}, {"data": nothing()}):
        async with http.post(f"{gateway}/v1/files?{query}", **body) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (400, "query_not_allowed")
    async with http.get(f"{gateway}/v1/files?{query}") as answer:
        assert answer.status == 200


async def nothing() -> AsyncIterator[bytes]:
    """Yield the chunks of a body that is empty, which a client sends in chunks."""
    for chunk in ():
        yield chunk


async def test_a_compressed_form_is_refused_and_compressed_json_is_sent_plain(gateway: str, upstream, http):
    """What was checked is what is sent."""
    upstream.answer = answering(b"{}")
    async with http.post(f"{gateway}/v1/embeddings", json={"model": "m", "input": "x"}, compress="gzip") as answer:
        assert answer.status == 200
    headers = {"Content-Type": "image/png"}
    async with http.post(f"{gateway}/v1/files", data=b"abc", headers=headers, compress="gzip") as answer:
        assert answer.status == 415

    assert [request.body for request in upstream.requests] == [{"model": "m", "input": "x"}]


async def test_an_expectation_is_met(gateway: str, upstream: FakeUpstream):
    """A client such as curl waits before it sends a large file."""
    upstream.answer = answering(b"{}")
    head = b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    async with wire(gateway) as connection:
        await connection.send(head)
        assert await connection.line() == b"HTTP/1.1 100 Continue\r\n"
        await connection.line()
        await connection.send(b"PNG")
        assert (await connection.answer()).status == 200

    assert upstream.requests[0].raw == b"PNG"


def finished(logged: list[dict[str, Any]]) -> dict[str, Any]:
    return next(line for line in logged if line["event"] == "request.finished")


async def test_a_json_answer_is_metered(gateway: str, upstream: FakeUpstream, http, logged):
    """The record has route, backend, model and tokens."""
    upstream.answer = answering(EMBEDDING)
    async with http.post(f"{gateway}/v1/embeddings", json={"model": "text-embedding-3-small", "input": "Hi"}):
        pass
    line = finished(logged)

    assert {name: line.get(name) for name in ("route", "backend", "model", "status", "input_tokens", "path")} == {
        "route": "relay", "backend": "fake", "model": "text-embedding-3-small", "status": 200, "input_tokens": 7,
        "path": "/v1/embeddings",
    }  # fmt: skip


async def test_a_stream_is_metered_by_its_last_event(gateway: str, upstream: FakeUpstream, http, logged):
    """The sentinel is none."""
    upstream.answer = answering(b"".join(CHAT), "text/event-stream")
    async with http.post(f"{gateway}/v1/chat/completions", json={"model": "m", "stream": True}) as answer:
        await answer.read()
    line = finished(logged)

    assert (line["input_tokens"], line["output_tokens"], line["cached_tokens"]) == (5, 3, 2)
    assert (line["stream"], line["response_model"], line["response_id"]) == (True, "m-2026", "chatcmpl-1")


async def test_answers_without_usage_are_no_error(gateway: str, upstream: FakeUpstream, http):
    """Whatever an upstream says is in the bytes that pass."""
    for body in (
        b"[1]",
        b"no JSON",
        b'{"usage":[1],"id":{}}',
        b'{"usage":{"prompt_tokens":"x"},"response":{"usage":3}}',
    ):
        upstream.answer = answering(body)
        async with http.post(f"{gateway}/v1/moderations", json={"input": "Hi"}) as answer:
            assert (answer.status, await answer.read()) == (200, body)
        upstream.answer = answering(b"data: " + body, "text/event-stream")
        async with http.post(f"{gateway}/v1/chat/completions", json={"model": "m"}) as answer:
            assert (answer.status, await answer.read()) == (200, b"data: " + body)


POLICIES = [
    {"use": "models", "deny": ["secret-*"], "aliases": {"small": "text-embedding-3-small"}},
    {"use": "service_tier", "allow": ["auto", "default"], "default": "default"},
    {"use": "metadata_limits", "required": ["project"]},
]


async def test_policies_read_the_fields_that_a_json_body_has(start_gateway, upstream: FakeUpstream, http):
    """Models are denied and renamed; no policy requires or adds a field of the Responses protocol."""
    upstream.answer = answering(EMBEDDING)
    gateway = await start_gateway(tables_for(upstream.address, policy=POLICIES))
    outcomes = []
    for body in (
        {"model": "secret-1", "input": "x"},
        {"Model": "secret-1"},
        {"models": ["secret-1"]},
        {"model": 7},
        {"model": "m", "service_tier": "priority"},
        {"model": "small", "input": "x"},
        {"input": "no model"},
    ):
        async with http.post(f"{gateway}/v1/embeddings", json=body) as answer:
            outcomes.append((answer.status, (await answer.json()).get("error", {}).get("code")))

    assert outcomes == [
        (400, "models.not_allowed"), (400, "lookalike_field"), (400, "models.alternative_field"), (400, "invalid_type"),
        (400, "service_tier.not_allowed"), (200, None), (200, None),
    ]  # fmt: skip
    assert [request.body for request in upstream.requests] == [
        {"model": "text-embedding-3-small", "input": "x"}, {"input": "no model"},
    ]  # fmt: skip


async def test_a_policy_that_only_reports_changes_nothing(start_gateway, upstream: FakeUpstream, http):
    """The caller finds the violation in a header."""
    upstream.answer = answering(EMBEDDING)
    gateway = await start_gateway(tables_for(upstream.address, policy=[POLICIES[0] | {"mode": "report"}]))
    async with http.post(f"{gateway}/v1/embeddings", json={"model": "secret-1"}) as answer:
        assert (answer.status, answer.headers["x-headgate-policy"]) == (200, "report; models.not_allowed")


async def test_the_sdk_reads_a_refusal(start_gateway, upstream: FakeUpstream):
    """It is in the envelope of the protocol."""
    gateway = await start_gateway(tables_for(upstream.address, policy=POLICIES))
    async with connect_sdk(gateway, "any") as client:
        with pytest.raises(BadRequestError) as refused:
            await client.chat.completions.create(model="secret-1", messages=[])

    assert refused.value.code == "models.not_allowed"


CALLERS = [
    {"name": "anna", "team": "search", "key": "env:ANNA_KEY"},
    {"name": "ben", "team": "rival", "key": "env:BEN_KEY"},
]
ANNA, BEN = {"Authorization": "Bearer anna-key"}, {"Authorization": "Bearer ben-key"}


@pytest.fixture
async def shared_gateway(upstream: FakeUpstream, start_gateway, http) -> str:
    """A gateway with two teams, of which the first has created a file, a vector store, an upload and a completion."""
    state = {"use": "memory", "unknown_ids": "allow"}
    gateway = await start_gateway(tables_for(upstream.address, caller=CALLERS, state=state))
    for path, body, answer in (
        ("files", {}, {"id": "file-abc123", "object": "file"}),
        (
            "vector_stores",
            {"metadata": {"id": "file-other", "object": "file"}},
            {"id": "vs_abc123", "object": "vector_store"},
        ),
        ("files/complete", {}, {"id": "upload_1", "object": "upload", "file": {"id": "file-up1", "object": "file"}}),
        ("chat/completions", {"store": True}, {"id": "chatcmpl-stored1", "object": "chat.completion"}),
        ("chat/completions", {}, {"id": "chatcmpl-passing1", "object": "chat.completion"}),
    ):
        upstream.answer = answering(orjson.dumps(answer))
        async with http.post(f"{gateway}/v1/{path}", json=body, headers=ANNA) as created:
            assert created.status == 200
    upstream.requests.clear()
    upstream.answer = answering(b"{}")
    return gateway


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("step", [1, 7, 10_000])
async def test_what_a_stream_creates_is_bound_before_it_passes(
    shared_gateway, upstream, http, ending: bytes, step: int
):
    """The first event has the id of a completion that is stored. It passes untouched, however it arrives."""
    stream = b"".join([b": hello\n\nevent: x\n", *CHAT]).replace(b"\n", ending)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for start in range(0, len(stream), step):
            await response.write(stream[start : start + step])
        return response

    found = []
    for store in (None, True):
        upstream.answer = answer
        body = {"model": "m", "stream": True, "store": store}
        async with http.post(f"{shared_gateway}/v1/chat/completions", json=body, headers=ANNA) as reply:
            assert await reply.read() == stream
        upstream.answer = answering(b"{}")
        for headers in (BEN, ANNA):
            async with http.get(f"{shared_gateway}/v1/files/chatcmpl-1", headers=headers) as reply:
                found.append(reply.status)

    assert found == [200, 200, 404, 200]


async def test_comments_before_an_event_pass_at_once(gateway: str, upstream: FakeUpstream, http):
    """They keep the connection alive while the event is awaited."""
    received = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": hello\n\n: da")
        await received.wait()
        await response.write(b"ta\n\ndata: {}\n\n")
        return response

    upstream.answer = answer
    async with http.post(f"{gateway}/v1/chat/completions", json={"model": "m", "stream": True}) as reply:
        begun = await reply.content.readexactly(9)
        received.set()
        rest = await reply.content.read()

    assert (begun, rest) == (b": hello\n\n", b": data\n\ndata: {}\n\n")


NAMED = [
    ("GET", "/v1/files/file-abc123", None),
    ("GET", "/v1/files/file-abc123/content", None),
    ("DELETE", "/v1/files/file-abc123", None),
    ("GET", "/v1/files/FILE-abc123", None),
    ("GET", "/v1/files?after=file-abc123", None),
    ("GET", "/v1/files/file-up1", None),
    ("GET", "/v1/files/upload_1", None),
    ("POST", "/v1/vector_stores/vs_abc123/search", {"query": "x"}),
    ("POST", "/v1/vector_stores", {"file_ids": ["file-none", "file-abc123"]}),
    ("POST", "/v1/vector_stores", {"files": [{"file_id": "file-abc123"}]}),
    (
        "POST",
        "/v1/chat/completions",
        {"messages": [{"content": [{"type": "file", "file": {"file_id": "file-abc123"}}]}]},
    ),
    ("POST", "/v1/moderations", {"training_file": "file-abc123"}),
    ("POST", "/v1/moderations", {"training_file": "file-abc123" + " " * 300}),
    ("POST", "/v1/moderations", {"training_file": "\u200b" * 300 + "file-abc123"}),
    ("GET", "/v1/files?after=" + "%20" * 300 + "file-abc123", None),
    ("POST", "/v1/moderations", {"tools": [{"vectorStoreIds": ["vs_abc123"]}]}),
    ("GET", "/v1/files/chatcmpl-stored1", None),
]


@pytest.mark.parametrize(("method", "target", "body"), NAMED)
async def test_what_one_team_created_no_other_team_can_name(method, target, body, shared_gateway, upstream, http):
    """In the path, the query or the body. Its own team can."""
    sent = {} if body is None else {"json": body}
    async with http.request(method, shared_gateway + target, headers=BEN, **sent) as answer:
        refused = (answer.status, (await answer.json())["error"]["message"])
    assert upstream.requests == []
    async with http.request(method, shared_gateway + target, headers=ANNA, **sent) as answer:
        allowed = answer.status

    assert refused[0] == 404
    assert refused[1].startswith("No object with id '")
    assert allowed == 200


async def test_a_form_cannot_name_what_another_team_created(shared_gateway: str, upstream: FakeUpstream, http):
    """A container, for example, takes the id of a file in a form, and shows what is in the file."""
    found = []
    for headers in (BEN, ANNA):
        form = FormData({"file_id": "file-abc123", "purpose": "x"})
        form.add_field("file", b"a" * 100_000, filename="a.txt")
        async with http.post(f"{shared_gateway}/v1/vector_stores/vs_1/files", data=form, headers=headers) as answer:
            found.append((answer.status, (await answer.json()).get("error", {}).get("message")))

    assert found == [(404, "No object with id 'file-abc123' found."), (200, None)]
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("target", ["/v1/files/file-none", "/v1/files/file-other", "/v1/files/chatcmpl-passing1"])
async def test_ids_that_no_team_received_pass(target: str, shared_gateway: str, upstream: FakeUpstream, http):
    """Also one that a caller wrote into the metadata of what it created, and one of a completion that is not kept."""
    async with http.get(shared_gateway + target, headers=BEN) as answer:
        assert answer.status == 200


async def test_a_file_of_another_team_cannot_be_bound_again(shared_gateway: str, upstream: FakeUpstream, http):
    """An upstream that answers with an id that it has handed out before moves nothing."""
    upstream.answer = answering(b'{"id":"file-abc123","object":"file"}')
    async with http.post(f"{shared_gateway}/v1/files", json={}, headers=BEN):
        pass
    async with http.get(f"{shared_gateway}/v1/files/file-abc123", headers=BEN) as answer:
        assert answer.status == 404


async def test_a_request_with_too_many_ids_is_refused(gateway: str, upstream: FakeUpstream, http):
    """The owner of each would be looked up."""
    async with http.post(
        f"{gateway}/v1/vector_stores", json={"file_ids": [f"file-{n}" for n in range(2001)]}
    ) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "too_many_ids")


async def test_unknown_ids_can_be_refused_like_foreign_ones(upstream: FakeUpstream, start_gateway, http):
    """By default. What the team has created still passes, and so do words of a path."""
    upstream.answer = answering(b'{"id":"file-abc123","object":"file"}')
    gateway = await start_gateway(tables_for(upstream.address, caller=CALLERS))
    found = []
    for method, path, headers in (
        ("GET", "/v1/files/file-abc123", ANNA),
        ("POST", "/v1/files", ANNA),
        ("GET", "/v1/files/file-abc123", ANNA),
        ("GET", "/v1/files/file-abc123", BEN),
        ("POST", "/v1/chat/completions", BEN),
    ):
        body = {"json": {}} if method == "POST" else {}
        async with http.request(method, gateway + path, headers=headers, **body) as answer:
            found.append((answer.status, (await answer.json()).get("error", {}).get("message")))

    assert [status for status, _ in found] == [404, 200, 200, 404, 200]
    assert found[0] == found[3]


async def test_a_model_in_a_form_is_checked(start_gateway, upstream: FakeUpstream, http, logged):
    """Wherever it stands, before the upstream can have read it; an alias is refused, because forms pass as they are."""
    policy = {"use": "models", "allow": ["whisper-*"], "aliases": {"fast": "whisper-1"}}
    gateway = await start_gateway(tables_for(upstream.address, policy=[policy]))
    upstream.answer = answering(b'{"text":"Hi"}')

    async def send(*fields: tuple[str, str], is_last: bool = False) -> tuple[int, str | None]:
        form = FormData()
        names = [lambda: form.add_field("file", b"a" * 200_000, filename="a.wav", content_type="audio/wav")]
        names += [lambda name=name, value=value: form.add_field(name, value) for name, value in fields]
        for add in names if is_last else reversed(names):
            add()
        async with http.post(f"{gateway}/v1/audio/transcriptions", data=form) as answer:
            return answer.status, (await answer.json()).get("error", {}).get("code")

    allowed = [await send(("model", "whisper-1"), is_last=last) for last in (False, True)]
    received = len(upstream.requests)
    refused = [
        await send(("model", "gpt-4o-transcribe"), is_last=last) for last in (False, True)
    ] + [
        await send(("model", "whisper-1"), ("Model", "gpt-4o-transcribe")),
        await send(("model[]", "gpt-4o-transcribe")),
        await send(("models", "whisper-1")),
        await send(("model", "fast")),
        await send(("model", "whisper-1" + " " * 5_000)),
    ]  # fmt: skip

    assert allowed == [(200, None)] * 2
    assert refused == [
        *[(400, "models.not_allowed")] * 4, (400, "models.alternative_field"), (400, "alias_in_form"),
        (400, "invalid_value"),
    ]  # fmt: skip
    assert len(upstream.requests) == received
    assert [line.get("model") for line in logged if line["event"] == "request.finished"][:2] == ["whisper-1"] * 2


async def test_a_list_has_no_files_of_other_teams(shared_gateway: str, upstream: FakeUpstream):
    """Pages that have none of the team's own are passed over; a page without others' files passes as it was sent."""
    names = ["file-up1", "file-old1", "file-abc123", "file-old2", "file-old3", "upload_1"]

    async def list_files(request: web.Request) -> web.StreamResponse:
        start = names.index(request.query["after"]) + 1 if "after" in request.query else 0
        end = start + int(request.query["limit"])
        data = [{"id": name, "object": "file", "filename": name} for name in names[start:end]]
        page = {"object": "list", "data": data, "first_id": data[0]["id"], "last_id": data[-1]["id"]}
        return web.Response(
            body=orjson.dumps({**page, "has_more": end < len(names)}, option=orjson.OPT_INDENT_2),
            content_type="application/json",
        )

    upstream.answer = list_files
    found = {}
    for name, limit in (("anna", 6), ("ben", 6), ("ben", 1)):
        async with connect_sdk(shared_gateway, f"{name}-key") as client:
            found[name, limit] = [file.id async for file in client.files.list(limit=limit)]

    assert found["anna", 6] == names
    assert found["ben", 6] == found["ben", 1] == ["file-old1", "file-old2", "file-old3"]


LONG_LIST = orjson.dumps([{"id": "file-1"}] * 10_001)


@pytest.mark.parametrize("body", [b'{"data": [', b"no JSON", orjson.dumps({"data": [0] * 1_000_001}), LONG_LIST])
async def test_a_list_that_cannot_be_searched_is_refused(body: bytes, shared_gateway: str, upstream, http):
    """It could have anything of other teams. What the team's own object has passes."""
    upstream.answer = answering(body)
    statuses = []
    for path in ("files", "files/file-abc123", "files/file-old/content"):
        async with http.get(f"{shared_gateway}/v1/{path}", headers=ANNA) as answer:
            statuses.append(answer.status)

    assert statuses == [502, 200, 200]


async def test_files_that_appear_later_belong_to_the_team_of_their_object(start_gateway, upstream: FakeUpstream, http):
    """The output of a batch, and the files of a vector store."""
    relays = [{"path": path, "backend": "fake"} for path in ("/v1/batches/*", "/v1/files/*", "/v1/vector_stores/*")]
    gateway = await start_gateway(tables_for(upstream.address, caller=CALLERS, relay=relays))
    batch = {"id": "batch_1", "object": "batch", "output_file_id": None}
    done = batch | {"output_file_id": "file-out1", "error_file_id": "file-err1"}
    statuses = []
    for method, path, made, headers in (
        ("POST", "batches", batch, ANNA),
        ("GET", "batches/batch_1", done, ANNA),
        ("POST", "vector_stores", {"id": "vs_1", "object": "vector_store"}, ANNA),
        ("GET", "vector_stores/vs_1/files", {"data": [{"id": "file-in1", "object": "vector_store.file"}]}, ANNA),
        ("GET", "files/file-out1/content", {}, ANNA),
        ("GET", "files/file-out1/content", {}, BEN),
        ("GET", "files/file-err1", {}, BEN),
        ("DELETE", "files/file-in1", {}, BEN),
        ("GET", "batches/batch_1", done, BEN),
    ):
        upstream.answer = answering(orjson.dumps(made))
        async with http.request(method, f"{gateway}/v1/{path}", headers=headers) as answer:
            statuses.append(answer.status)

    assert statuses == [200] * 5 + [404] * 4


async def test_a_request_goes_to_the_backend_that_keeps_its_object(
    start_gateway, upstream: FakeUpstream, http, tmp_path
):
    """Although the path is relayed to another one by now."""
    state = {"use": "sqlite", "path": str(tmp_path / "state")}
    upstream.answer = answering(b'{"id":"file-abc123","object":"file"}')
    first = await start_gateway(tables_for(upstream.address, state=state))
    async with http.post(f"{first}/v1/files", json={}) as created:
        assert created.status == 200
    async with serving(answering_nothing) as other:
        backends = [
            {"name": name, "use": "upstream", "base_url": f"{address}/v1", "api_key": "env:GATEWAY_KEY"}
            for name, address in (("other", other), ("fake", upstream.address))
        ]
        second = await start_gateway(
            tables_for("", state=state, backend=backends, relay=[{"path": "/v1/files/*", "backend": "other"}])
        )
        statuses = []
        for path in ("files/file-abc123", "files"):
            async with http.get(f"{second}/v1/{path}") as answer:
                statuses.append(answer.status)

    assert statuses == [200, 503]


async def answering_nothing(request: web.BaseRequest) -> web.StreamResponse:
    return web.json_response({"error": {"message": "Not here."}}, status=503)


@pytest.mark.parametrize(
    ("path", "answer", "is_forgotten"),
    [
        ("files/file-abc123", {"id": "file-abc123", "deleted": True}, True),
        ("files/file-abc123", {"id": "file-abc123", "deleted": False}, False),
        ("vector_stores/vs_abc123/files/file-abc123", {"id": "file-abc123", "deleted": True}, False),
    ],
)
async def test_what_was_deleted_has_no_owner(
    path: str, answer: Any, is_forgotten: bool, shared_gateway, upstream, http
):
    """A file that was only removed from a vector store still has one."""
    upstream.answer = answering(orjson.dumps(answer))
    async with http.delete(f"{shared_gateway}/v1/{path}", headers=ANNA) as deleted:
        assert deleted.status == 200
    async with http.get(f"{shared_gateway}/v1/files/file-abc123", headers=BEN) as found:
        assert found.status == (200 if is_forgotten else 404)
