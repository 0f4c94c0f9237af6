"""Requests from head to answer: authentication, forwarded headers, errors, and the headers of every answer."""

import hashlib

import aiohttp
import pytest
from openai import AuthenticationError, NotFoundError

from tests.conftest import tables_for
from tests.raw import ask, no_tasks_left, post, serves, wire  # noqa: F401
from tests.sdk import connect_sdk
from tests.upstream import FakeUpstream, canonical

SEARCH, BATCH, GATEWAY_KEY = "sk-search-0123456789", "sk-batch-0123456789", "sk-gateway-0123456789"


@pytest.fixture
async def gateway_with_callers(start_gateway, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> str:
    """A gateway with two callers, one configured by key and one by digest, and a key of its own for the upstream."""
    monkeypatch.setenv("SEARCH_KEY", SEARCH)
    monkeypatch.setenv("GATEWAY_KEY", GATEWAY_KEY)
    callers = [
        {"name": "search", "key": "env:SEARCH_KEY"},
        {"name": "batch", "team": "night", "key_sha256": hashlib.sha256(BATCH.encode()).hexdigest()},
    ]
    tables = tables_for(upstream, caller=callers)
    tables["backend"][0]["api_key"] = "env:GATEWAY_KEY"
    return await start_gateway(tables)


@pytest.mark.parametrize(("key", "name"), [(SEARCH, "search"), (BATCH, "batch")])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_caller_is_identified_by_its_key(gateway_with_callers: str, logged, key: str, name: str, scheme: str):
    """The config has the key or its digest; the scheme is case-insensitive (RFC 9110, 11.1)."""
    answer = await ask(gateway_with_callers, post(authorization=f"{scheme} {key}"))

    assert answer.status == 200
    assert [line["caller"] for line in logged if line["event"] == "request.finished"] == [name]


INVALID_CREDENTIALS = {
    "no key": [],
    "a wrong key": ["Bearer sk-wrong"],
    "an empty key": ["Bearer "],
    "an empty header": [""],
    "a prefix of a key": [f"Bearer {SEARCH[:-1]}"],
    "a key and more": [f"Bearer {SEARCH}x"],
    "a key in the wrong case": [f"Bearer {SEARCH.upper()}"],
    "a key's hash": [f"Bearer {hashlib.sha256(SEARCH.encode()).hexdigest()}"],
    "the gateway's own key": [f"Bearer {GATEWAY_KEY}"],
    "no scheme": [SEARCH],
    "Basic": ["Basic dXNlcjpwYXNz"],
    "two keys": ["Bearer sk-wrong", f"Bearer {SEARCH}"],
    "the same key twice": [f"Bearer {SEARCH}", f"Bearer {SEARCH}"],
    "two keys in one": [f"Bearer {SEARCH}, Bearer {SEARCH}"],
    "letters that are no ASCII": ["Bearer sk-\u00e9\u4e2d"],
    "bytes that are no text": ["Bearer \udcff\udcfe"],
    "a tab": [f"Bearer\t{SEARCH}"],
    "SQL": ["Bearer ' OR 1=1 --"],
    "a glob": ["Bearer *"],
    "a key of 8 kB": ["Bearer " + "a" * 8000],
}


@pytest.mark.parametrize("values", INVALID_CREDENTIALS.values(), ids=INVALID_CREDENTIALS)
@pytest.mark.parametrize("first", ["POST /v1/responses", "GET /v1/responses", "GET /v1/models", "GET /v1/models/m"])
async def test_a_request_without_a_valid_key_is_refused_on_every_path(
    gateway_with_callers: str, upstream: FakeUpstream, logged, first, values
):
    """The answer is a 401 `invalid_api_key`; no upstream is called; the key that was sent is neither repeated nor logged."""
    lines = [f"{first} HTTP/1.1", "Host: localhost", *(f"Authorization: {value}" for value in values)]
    answer = await ask(gateway_with_callers, "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape"))

    assert (answer.status, answer.error["code"], answer.error["param"]) == (401, "invalid_api_key", None)
    assert (answer.headers["www-authenticate"], answer.headers["x-should-retry"]) == ("Bearer", "false")
    assert upstream.requests == []
    assert SEARCH not in f"{answer} {logged}"


async def test_the_sdk_raises_an_authentication_error(gateway_with_callers: str):
    """Its code, request id and message are like those of OpenAI."""
    async with connect_sdk(gateway_with_callers, "sk-wrong") as client:
        with pytest.raises(AuthenticationError) as refused:
            await client.responses.create(model="m", input="Hi")

    assert refused.value.code == "invalid_api_key"
    assert refused.value.request_id.startswith("req_")
    assert "Incorrect API key provided" in refused.value.message


NOT_FORWARDED = {
    "Cookie": "a=b", "OpenAI-Organization": "org-1", "OpenAI-Project": "p-1", "X-Forwarded-For": "10.0.0.1",
    "Forwarded": "for=10.0.0.1", "Proxy-Authorization": "Basic eA==", "X-Api-Key": "sk-other", "Api-Key": "sk-other",
    "Accept": "text/html", "Accept-Language": "de", "Origin": "http://localhost", "Referer": "http://localhost/",
    "TE": "trailers", "X-Http-Method-Override": "DELETE", "X-Request-Id": "mine",
    "Cache-Control": "no-store", "Via": "1.1 a", "X-Original-Url": "/admin", "Baggage": "user=7", "Range": "bytes=0-1",
}  # fmt: skip
FORWARDED = {
    "openai-beta": "responses=v1", "user-agent": "OpenAI/Python 3.51.0", "x-client-request-id": "c-1",
    "x-stainless-lang": "python", "x-codex-turn": "7", "session-id": "s", "originator": "codex", "x-openai-internal-codex-responses-lite": "1",
}  # fmt: skip


async def test_the_upstream_receives_the_key_of_the_gateway_and_not_of_the_caller(
    gateway_with_callers: str, upstream: FakeUpstream, http
):
    """Exactly one Authorization header is sent, that of the backend."""
    async with http.post(
        f"{gateway_with_callers}/v1/responses", json={"model": "m"}, headers={"Authorization": f"Bearer {SEARCH}"}
    ):
        pass

    assert upstream.requests[0].headers["Authorization"] == f"Bearer {GATEWAY_KEY}"
    assert SEARCH not in str(upstream.requests)


async def test_only_listed_headers_are_forwarded(gateway: str, upstream: FakeUpstream, http):
    """The list has headers of SDKs, sessions and betas, and none that identify the caller."""
    async with http.post(
        f"{gateway}/v1/responses", json={"model": "m"}, headers={**NOT_FORWARDED, **FORWARDED}
    ) as answer:
        assert answer.status == 200
    names = {name.lower(): value for name, value in upstream.requests[0].headers.items()}

    assert {name: names.get(name) for name in FORWARDED} == FORWARDED
    assert set(names) - set(FORWARDED) <= {"host", "accept", "accept-encoding", "content-type", "content-length"}
    assert (names["accept-encoding"], names["accept"]) == ("identity", "*/*")


async def test_a_connection_header_removes_nothing_from_the_upstream_request(gateway: str, upstream: FakeUpstream):
    """The header applies to the caller's own connection only."""
    answer = await ask(
        gateway, post(connection="keep-alive, content-type, authorization", user_agent="a", keep_alive="5")
    )

    assert answer.status == 200
    assert upstream.requests[0].headers["Content-Type"] == "application/json"
    assert "Keep-Alive" not in upstream.requests[0].headers


async def test_header_values_that_are_not_utf_8_are_accepted(gateway: str, upstream: FakeUpstream):
    """HTTP allows any byte above 127 in a value."""
    data = post(user_agent="?").replace(b"user-agent: ?", b"User-Agent: \xff\xfe\r\nX-Codex-A: \xe9")

    assert (await ask(gateway, data)).status == 200
    assert len(upstream.requests) == 1


async def test_keys_appear_in_no_log_and_no_answer(
    gateway_with_callers: str, upstream: FakeUpstream, logged, caplog, capfd
):
    """Requests succeed, are refused, are invalid or broken off, or the upstream repeats the key."""

    async def echo(request: aiohttp.web.Request) -> aiohttp.web.Response:
        refusal = {"error": {"message": f"Incorrect API key: {request.headers['Authorization']}"}}
        return aiohttp.web.json_response(refusal, status=401)

    bearer = f"Bearer {SEARCH}"
    answers = [await ask(gateway_with_callers, post(authorization=bearer))]
    upstream.answer = echo
    answers.append(await ask(gateway_with_callers, post(authorization=bearer)))
    answers.append(await ask(gateway_with_callers, post(b"[", authorization=bearer)))
    answers.append(await ask(gateway_with_callers, post(target="/nowhere", authorization=bearer)))
    answers.append(await ask(gateway_with_callers, post(authorization=bearer, x="\x00")))
    async with wire(gateway_with_callers) as connection:
        await connection.send(post(authorization=bearer)[:-1])
    written = f"{answers} {logged} {caplog.text} {''.join(capfd.readouterr())}"

    assert [answer.status for answer in answers] == [200, 502, 400, 404, 400]
    assert [key for key in (SEARCH, BATCH, GATEWAY_KEY) if key in written] == []


ANSWERS = {
    "a call": (post(), 200),
    "a stream": (post(b'{"model":"m","stream":true}'), 200),
    "models": (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
    "healthz": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
    "readyz": (b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
    "a bad body": (post(b"["), 400),
    "a violation": (post(b'{"model":"m","metadata":[]}'), 400),
    "an unknown path": (post(target="/v2"), 404),
    "a wrong method": (post(target="/v1/models"), 405),
    "a foreign host": (post(host="evil"), 421),
    "an upgrade": (b"GET /v1/responses HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n", 426),
    "no framing": (post(transfer_encoding="gzip").replace(b"Content-Length", b"X-Length"), 400),
}


@pytest.mark.parametrize(("data", "status"), ANSWERS.values(), ids=ANSWERS)
async def test_every_answer_has_an_id_and_its_timing(gateway: str, logged, data: bytes, status: int):
    """The id is that of the log line; errors have `x-should-retry: false`."""
    answer = await ask(gateway, data)
    finished = [line for line in logged if line["event"] in ("request.finished", "request.rejected")]

    assert answer.status == status
    assert [answer.headers["x-request-id"]] == [line["request_id"] for line in finished]
    assert "server-timing" in answer.headers or finished[0]["event"] == "request.rejected"
    assert answer.headers.get("x-should-retry") == ("false" if status >= 400 else None)


async def test_request_ids_are_unique(gateway: str):
    """A caller cannot choose its request id."""
    answers = [await ask(gateway, post(x_request_id="mine")) for _ in range(3)]

    assert len({answer.headers["x-request-id"] for answer in answers}) == 3


async def test_the_timing_names_each_step(gateway: str):
    """The steps are in the order of the path."""
    answer = await ask(gateway, post())

    assert [step.partition(";")[0] for step in answer.headers["server-timing"].split(", ")][:3] == [
        "identify", "parse", "policies",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("PUT", "/v1/responses", "POST"), ("DELETE", "/v1/responses", "POST"), ("GET", "/v1/responses", "POST"),
     ("POST", "/v1/models", "GET"), ("DELETE", "/v1/models/m", "GET"), ("POST", "/healthz", "GET")],
)  # fmt: skip
async def test_a_wrong_method_is_refused_with_the_allowed_ones(gateway: str, http, method: str, path: str, allow: str):
    """The answer is a 405 with Allow (RFC 9110, 15.5.6)."""
    async with http.request(method, f"{gateway}{path}") as answer:
        assert answer.status == 405
        assert allow in answer.headers["Allow"]
        assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/responses"), ("GET", "/v1/responses/resp_1"), ("GET", "/v1/models")]
)
async def test_a_query_of_many_parameters_is_refused_before_it_is_read(
    gateway: str, upstream: FakeUpstream, http, method: str, path: str
):
    """On every path, whatever separates them: several policies would decode and compare each."""
    for separator, count, is_refused in (("&", 128, False), ("&", 129, True), (";", 4000, True)):
        query = separator.join(["a"] * count)
        async with http.request(method, f"{gateway}{path}?{query}", json={"model": "m"}) as answer:
            code = ((await answer.json()).get("error") or {}).get("code")

        assert (code == "too_many_parameters") == is_refused
    assert len(upstream.requests) <= 2


async def test_the_listed_models_are_those_that_routes_serve(start_gateway, upstream: FakeUpstream):
    """They are the names in routes and the models that the backend of a glob lists; each can be retrieved, also with a slash."""
    routes = [{"model": "acme/small", "backend": "fake"}, {"model": "*", "backend": "fake"}]
    gateway = await start_gateway(tables_for(upstream, route=routes))
    async with connect_sdk(gateway, "x") as client:
        listed = [model.id async for model in client.models.list()]
        named = [(await client.models.retrieve(model)).id for model in listed]
        with pytest.raises(NotFoundError) as unknown:
            await client.models.retrieve("unknown")

    assert listed == named == ["acme/small", "gpt-5.6", "gpt-5.6-mini"]
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")


async def test_an_unreachable_backend_hides_only_its_own_models(start_gateway, upstream: FakeUpstream):
    """The list is shorter; the request does not fail."""
    away = {"name": "away", "use": "upstream", "base_url": "http://127.0.0.1:9/v1"}
    tables = tables_for(upstream, route=[{"model": "gpt-*", "backend": "fake"}, {"model": "*", "backend": "away"}])
    gateway = await start_gateway(tables | {"backend": [*tables["backend"], away]})
    answer = await ask(gateway, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert answer.status == 200
    assert b"gpt-5.6-mini" in answer.body


@pytest.mark.parametrize("listed", [{}, {"data": None}, {"data": [{"name": "m"}]}, [], "models"])
async def test_an_invalid_list_of_models_counts_as_empty(gateway: str, upstream: FakeUpstream, listed: object):
    """Calls for its models are still served."""

    async def answer(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        return aiohttp.web.json_response(listed) if request.method == "GET" else await canonical(request)

    upstream.answer = answer
    models = await ask(gateway, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert (models.status, models.body) == (200, b'{"object":"list","data":[]}')
    assert await serves(gateway)


async def test_a_model_without_a_route_is_unknown(start_gateway, upstream: FakeUpstream, logged):
    """The answer is a 404 `model_not_found` in the words of OpenAI; the answer and the log are short."""
    gateway = await start_gateway(tables_for(upstream, route=[{"model": "gpt-*", "backend": "fake"}]))
    answer = await ask(gateway, post(b'{"model":"%b"}' % (b"x" * 256)))

    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert len(answer.body) < 500
    assert len(str(logged)) < 1000
    assert upstream.requests == []


async def test_a_crash_is_answered_without_its_cause(start_gateway, logged):
    """The answer is a 500 in the envelope, and the gateway keeps serving."""
    backend = {"name": "faulty", "use": "tests.crashing_backend"}
    gateway = await start_gateway({"backend": [backend], "route": [{"model": "*", "backend": "faulty"}]})
    answers = [await ask(gateway, post(body)) for body in (b'{"model":"m"}', b'{"model":"m","stream":true}')]

    assert [(answer.status, answer.error["code"]) for answer in answers] == [(500, "internal_error")] * 2
    assert "1234" not in str(answers)
    assert [line["event"] for line in logged].count("request.crashed") == 2
