"""Kept answers: for the same call of the same team, and for no other."""

import asyncio
import hashlib
from dataclasses import replace
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from backends import Backend
from proxy.cache.cache import Cache
from proxy.cache.vault import Vault
from proxy.cache.vault_keys import ENTRIES, PREFIX, Partition
from proxy.config.schema import CacheTable
from proxy.context import Caller
from proxy.pipeline import Pipeline
from proxy.routing.routes import Route, Routes
from proxy.rules.rule import compile_selector
from proxy.stores import Store, StoreError
from proxy.stores.memory import MemoryStore
from proxy.wire.errors import BackendError, RequestError
from proxy.wire.event import Reply
from tests.conftest import DATA, tables_for
from tests.examples import ANNA, make_call, make_context
from tests.pipelines import ScriptedBackend, answer_of, make_pipeline, object_of, replying
from tests.rules.samples import RESPONSE, Capitals, ItemBudget, make_rule
from tests.sdk import connect_sdk
from tests.stores.one_by_one import OneByOneStore
from tests.upstream import FakeUpstream
from tests.wire.streams import CANONICAL, RECORDING, events_in, frame

BEN, CAROL = Caller("ben", "search"), Caller("carol", "sales")
ASKED = {"input": "Hi", "prompt_cache_key": "k"}
STREAMED = b"".join(CANONICAL)
HIT, MISS = "hit", "fwd=uri-miss"
SECRET, OLD = [SecretStr(f"a secret of at least 32 characters: {name}") for name in ("new", "old")]


class SettableClock:
    """A clock that a test sets."""

    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


class BrokenStore(OneByOneStore):
    """Fails to read, to write, or both."""

    read_fails: bool = False
    write_fails: bool = False
    reason: str = "The store cannot be reached."

    async def get(self, key: str) -> bytes | None:
        if self.read_fails:
            raise StoreError(self.reason)
        return await super().get(key)

    async def put(self, key: str, value: bytes, *, ttl_s: float, if_absent: bool = False, group: str = "") -> bool:
        if self.write_fails:
            raise StoreError(self.reason)
        return await super().put(key, value, ttl_s=ttl_s, if_absent=if_absent, group=group)


def make_cache(store: Store | None = None, clock: SettableClock | None = None, **settings: Any) -> Cache:
    return Cache(CacheTable(use="memory", **settings), store or MemoryStore(), clock=clock or SettableClock())


def nested(levels: int) -> list[Any]:
    """Return an array of so many levels."""
    deep: list[Any] = []
    for _ in range(levels):
        deep = [deep]
    return deep


def cached(backend: Backend, rules: Any = (), **options: Any) -> Pipeline:
    """Return a pipeline with a cache in front of a backend."""
    return make_pipeline(backend, rules=rules, cache=make_cache(**options))


async def status_of(pipeline: Pipeline, caller: Caller = ANNA, cache_control: str = "", **fields: Any) -> str:
    """Return the Cache-Status of one answer, without the name of the cache."""
    context = make_context(caller, received={"cache-control": cache_control})
    await answer_of(pipeline, make_call(**ASKED | fields), context)
    return context.answer_headers["Cache-Status"].removeprefix("headgate; ")


@pytest.mark.parametrize("stream", [True, False])
async def test_the_second_call_gets_the_answer_of_the_first(stream: bool):
    """The backend is called once, and Cache-Status distinguishes the two."""
    backend = ScriptedBackend(answer=STREAMED if stream else RESPONSE)
    pipeline, contexts = cached(backend), [make_context(), make_context()]
    first, second = [await answer_of(pipeline, make_call(**ASKED, stream=stream), context) for context in contexts]

    assert first == second == (STREAMED if stream else orjson.dumps(RESPONSE))
    assert [context.answer_headers for context in contexts] == [
        {"Cache-Status": "headgate; fwd=uri-miss"},
        {"Cache-Status": "headgate; hit; ttl=3600", "Age": "0"},
    ]
    assert [context.record.cache for context in contexts] == ["miss", "hit"]
    assert len(backend._calls) == 1


async def test_the_log_line_says_how_long_the_lookup_took():
    """Of hits and misses; a call that is not looked up has no such time."""
    pipeline, contexts = cached(ScriptedBackend(answer=RESPONSE)), [make_context() for _ in range(3)]
    for context, fields in zip(contexts, (ASKED, ASKED, {"input": "Hi"}), strict=True):
        await answer_of(pipeline, make_call(**fields), context)

    assert [context.record.cache for context in contexts] == ["miss", "hit", "bypass"]
    assert [type(context.record.cache_lookup_s) for context in contexts] == [float, float, type(None)]


async def test_age_and_ttl_change_with_time():
    """In whole seconds; a clock that was set back makes no negative age."""
    clock, backend = SettableClock(), ScriptedBackend(answer=RESPONSE)
    pipeline = cached(backend, clock=clock, ttl_s=100)
    await status_of(pipeline)
    found = []
    for passed_s in (0.0, 1.9, 60.0, -30.0):
        clock.now_s = SettableClock.now_s + passed_s
        context = make_context()
        await answer_of(pipeline, make_call(**ASKED), context)
        found.append((context.answer_headers["Age"], context.answer_headers["Cache-Status"]))

    assert found == [
        ("0", "headgate; hit; ttl=100"),
        ("1", "headgate; hit; ttl=98"),
        ("60", "headgate; hit; ttl=40"),
        ("0", "headgate; hit; ttl=100"),
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_headers_of_the_gateway_are_kept_with_the_answer(stream: bool):
    """Such as the fields that a model ignored; headers of the upstream belong to the first answer only."""
    backend = ScriptedBackend(answer=RESPONSE, headers={"x-headgate-ignored": "seed", "x-upstream-request-id": "req_1"})
    pipeline = cached(backend)
    await status_of(pipeline)
    async with replying(pipeline, make_call(**ASKED, stream=stream), make_context()) as reply:
        headers = reply.headers

    assert headers == {"x-headgate-ignored": "seed"}


@pytest.mark.parametrize("first", [True, False])
async def test_one_entry_serves_bodies_and_streams(start_gateway, upstream: FakeUpstream, first: bool):
    """The SDK reads the final object of a kept stream, and the events of a kept body."""
    gateway = await start_gateway(tables_for(upstream, policy=[]))
    async with connect_sdk(gateway, "x") as client:
        texts = []
        for stream in (first, not first):
            if stream:
                async with client.responses.stream(model="m", input="Hi", prompt_cache_key="k") as events:
                    texts.append((await events.get_final_response()).output_text)
            else:
                answer = await client.responses.create(model="m", input="Hi", prompt_cache_key="k")
                texts.append(answer.output_text)

    assert (texts, len(upstream.requests)) == (["Hello.", "Hello."], 1)


@pytest.mark.parametrize("stream", [True, False])
async def test_echoed_fields_are_those_of_the_answered_call(stream: bool):
    """Metadata and identifiers of the first caller do not reach the second."""
    first = {"metadata": {"who": "first"}, "safety_identifier": "first", "user": "first"}
    frames = STREAMED
    for event in events_in(STREAMED):
        if "response" in event:
            frames = frames.replace(orjson.dumps(event), orjson.dumps(event | {"response": event["response"] | first}))
    backend = ScriptedBackend(answer=frames if stream else RESPONSE | first)
    pipeline = cached(backend)
    await status_of(pipeline, **first, stream=stream)
    second = {"metadata": {"who": "second"}, "safety_identifier": "second", "user": None}
    answer = await answer_of(pipeline, make_call(**ASKED, **second, stream=stream), make_context(BEN))

    assert b"first" not in answer
    assert (
        answer.count(b'"metadata":{"who":"second"}')
        == answer.count(b'"safety_identifier":"second"')
        == (3 if stream else 1)
    )
    assert len(backend._calls) == 1


async def test_answers_are_shared_within_a_team():
    """The same call of another team is another call."""
    pipeline = cached(ScriptedBackend(answer=RESPONSE))

    assert [(await status_of(pipeline, caller)).partition(";")[0] for caller in (ANNA, BEN, CAROL)] == [MISS, HIT, MISS]


async def test_answers_can_be_shared_by_nobody_else():
    """`share = "caller"`: another caller of the team asks the backend."""
    pipeline = cached(ScriptedBackend(answer=RESPONSE), share="caller")
    callers = (ANNA, BEN, ANNA, BEN)

    assert [(await status_of(pipeline, caller)).partition(";")[0] for caller in callers] == [MISS, MISS, HIT, HIT]


@pytest.mark.parametrize(("fields", "carol"), [({"store": False}, HIT), ({}, MISS)])
async def test_answers_can_be_shared_by_all_teams(fields: dict[str, Any], carol: str):
    """`share = "all"`: but no stored answer, whose id belongs to a team, and none that continues one."""
    pipeline = cached(ScriptedBackend(answer=RESPONSE, keeps_state=True), share="all")
    statuses = [(await status_of(pipeline, caller, **fields)).partition(";")[0] for caller in (ANNA, BEN, CAROL)]

    assert statuses == [MISS, HIT, carol]


async def test_entries_are_sealed_with_a_secret():
    """Nothing of them, nor who shares them, can be read in the store; the answers are the same."""
    store, backend = MemoryStore(), ScriptedBackend(answer=STREAMED)
    pipeline = cached(backend, store=store, secrets=(SECRET,))
    answers = [await answer_of(pipeline, make_call(**ASKED, stream=True), make_context()) for _ in range(2)]
    stored = b"".join([key.encode() + (await store.get(key) or b"") async for key in store.scan("")])

    assert (answers, len(backend._calls)) == ([STREAMED, STREAMED], 1)
    assert [
        text for text in (b"Hello", b"response", b"search", b"completed", RESPONSE["id"].encode()) if text in stored
    ] == []


async def test_the_secret_can_be_replaced():
    """Entries of the old one are read until they expire, and written with the new one."""
    store, backend = MemoryStore(), ScriptedBackend(answer=RESPONSE)
    old, both, new = [cached(backend, store=store, secrets=of) for of in ((OLD,), (SECRET, OLD), (SECRET,))]
    found = [
        await status_of(old),
        await status_of(both),
        await status_of(new),
        await status_of(both, input="2"),
        await status_of(new, input="2"),
    ]

    assert [status.partition(";")[0] for status in found] == [MISS, HIT, MISS, MISS, HIT]


async def test_a_team_s_entries_are_forgotten_at_once():
    """Those of its callers and no others; the next answer is kept again."""
    for options in ({}, {"secrets": (SECRET, OLD)}, {"share": "caller"}):
        store, backend = MemoryStore(), ScriptedBackend(answer=RESPONSE)
        pipeline = cached(backend, store=store, **options)
        vault = Vault(store, CacheTable(use="memory", **options).secrets_in_order)
        for caller in (ANNA, CAROL):
            await status_of(pipeline, caller)
        await vault.forget(Partition("team", "search"))

        found = [(await status_of(pipeline, caller)).partition(";")[0] for caller in (ANNA, CAROL, ANNA)]
        assert found == [MISS, HIT, HIT]


async def test_teams_of_the_config_share_answers(start_gateway, http, upstream: FakeUpstream):
    """With keys of their own."""
    teams = {"alice": "red", "bob": "red", "carol": "blue"}
    callers = [
        {"name": name, "team": team, "key_sha256": hashlib.sha256(f"key-of-{name}".encode()).hexdigest()}
        for name, team in teams.items()
    ]
    gateway = await start_gateway(tables_for(upstream, policy=[], caller=callers))
    statuses = {}
    for name in teams:
        headers = {"Authorization": f"Bearer key-of-{name}"}
        async with http.post(f"{gateway}/v1/responses", json={"model": "m", **ASKED}, headers=headers) as answer:
            statuses[name] = answer.headers["Cache-Status"].split(";")[1].strip()

    assert statuses == {"alice": "fwd=uri-miss", "bob": "hit", "carol": "fwd=uri-miss"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt_cache_key": None}, "no-prompt-cache-key"),
        ({"prompt_cache_key": 7}, "no-prompt-cache-key"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function", "name": "f"}, {"type": "mcp"}]}, "tools"),
        ({"tools": "odd"}, "tools"),
    ],
)
async def test_calls_that_are_never_cached_have_a_reason(change: dict[str, Any], reason: str):
    """Without the caller's consent, with effects beside the answer, or with fields of an unexpected type."""
    backend = ScriptedBackend(answer=RESPONSE, keeps_state=True)
    pipeline = cached(backend)

    assert [await status_of(pipeline, **change) for _ in range(2)] == [f"fwd=bypass; detail={reason}"] * 2
    assert len(backend._calls) == 2


async def test_answers_with_server_tools_are_cached_when_the_config_allows_it():
    """`server_tools = true` is for tools that need not run again."""
    backend = ScriptedBackend(answer=RESPONSE)
    pipeline = cached(backend, server_tools=True)
    for change in ({"tools": [{"type": "web_search"}]}, {"prompt": {"id": "pmpt_1"}}):
        assert [(await status_of(pipeline, **change)).partition(";")[0] for _ in range(2)] == ["fwd=uri-miss", "hit"]
    assert len(backend._calls) == 2


@pytest.mark.parametrize("name", ["incomplete", "failing", "failed_only"])
@pytest.mark.parametrize("stream", [True, False])
async def test_only_completed_responses_are_kept(name: str, stream: bool):
    """Whatever form the caller gets them in."""
    backend = ScriptedBackend(answer=(DATA / f"{name}.sse").read_bytes())
    pipeline = cached(backend)

    assert [await status_of(pipeline, stream=stream) for _ in range(2)] == ["fwd=uri-miss"] * 2
    assert len(backend._calls) == 2


@pytest.mark.parametrize("status", ["incomplete", "failed", "in_progress", None])
async def test_a_body_that_is_not_completed_is_not_kept(status: str | None):
    """Nor a completed event whose response has another status."""
    store, response = MemoryStore(), RESPONSE | {"status": status}
    for answer in (response, frame(type="response.completed", response=response)):
        await status_of(cached(ScriptedBackend(answer=answer), store=store))

        assert [key async for key in store.scan("")] == []


async def test_an_error_of_the_upstream_is_not_kept():
    """The next call may succeed."""
    pipeline = cached(ScriptedBackend(answer=Reply(429, {}, body=b'{"error":{}}')))

    assert [await status_of(pipeline) for _ in range(2)] == ["fwd=uri-miss"] * 2


async def test_a_stream_that_breaks_off_is_not_kept():
    """Wherever it was cut."""
    for count in range(1, len(CANONICAL), 3):
        pipeline = cached(ScriptedBackend(answer=b"".join(CANONICAL[:count])))
        statuses = [await status_of(pipeline, stream=True) for _ in range(2)]

        assert statuses == ["fwd=uri-miss"] * 2


async def test_a_stream_that_the_client_left_is_not_kept():
    """Half of it was read."""
    pipeline = cached(ScriptedBackend(answer=RECORDING))
    async with replying(pipeline, make_call(**ASKED, stream=True), make_context()) as reply:
        assert reply.batches is not None
        await anext(aiter(reply.batches))

    assert await status_of(pipeline, stream=True) == "fwd=uri-miss"


@pytest.mark.parametrize(("form", "size"), [(STREAMED, len(STREAMED)), (RESPONSE, len(orjson.dumps(RESPONSE)))])
async def test_answers_over_the_limit_are_not_kept(form: Any, size: int):
    """`max_reply_bytes` is the size of the largest one that is."""
    for limit, second in ((size - 1, "fwd=uri-miss"), (size, "hit")):
        pipeline = cached(ScriptedBackend(answer=form), max_reply_bytes=limit)
        await status_of(pipeline)

        assert (await status_of(pipeline)).partition(";")[0] == second


@pytest.mark.parametrize(
    ("directives", "age_s", "status"),
    [
        ("no-store", 0, "fwd=bypass; detail=no-store"),
        ("no-cache", 0, "fwd=request"),
        ("max-age=5, NO-CACHE", 0, "fwd=request"),
        ("max-age=0", 0, "fwd=request"),
        ("max-age=10", 10, "hit; ttl=90"),
        ("max-age=10", 11, "fwd=request"),
        ("min-fresh=80", 20, "hit; ttl=80"),
        ("min-fresh=80", 21, "fwd=request"),
        ("only-if-cached", 20, "hit; ttl=80"),
        ("", 100, "fwd=stale"),
    ],
)
async def test_the_request_s_own_cache_control_is_obeyed(directives: str, age_s: int, status: str):
    """A call that asks for a newer answer gets one, and it is kept."""
    clock, backend = SettableClock(), ScriptedBackend(answer=RESPONSE)
    pipeline = cached(backend, clock=clock, ttl_s=100)
    await status_of(pipeline)
    clock.now_s += age_s

    assert await status_of(pipeline, cache_control=directives) == status
    assert len(backend._calls) == (1 if status.startswith("hit") else 2)
    if status in ("fwd=request", "fwd=stale"):
        assert await status_of(pipeline) == "hit; ttl=100"


@pytest.mark.parametrize("fields", [{}, {"prompt_cache_key": None}, {"input": "Ho"}, {"background": True}])
@pytest.mark.parametrize("cache", [None, Cache(None, None)])
async def test_only_if_cached_asks_no_backend(fields: dict[str, Any], cache: Cache | None):
    """Whether the answer is missing, never kept, or there is no cache at all."""
    backend = ScriptedBackend(answer=RESPONSE, keeps_state=True)
    pipeline = make_pipeline(backend, cache=cache or make_cache())
    with pytest.raises(RequestError) as caught:
        await status_of(pipeline, cache_control="only-if-cached", **fields)

    assert (caught.value.status, caught.value.code, backend._calls) == (504, "only_if_cached", [])


async def test_a_stale_answer_is_given_while_a_new_one_is_asked_for():
    """Once, however many calls get the stale one meanwhile; then the new one is given."""
    clock, backend = SettableClock(), ScriptedBackend(answer=RESPONSE)
    cache = make_cache(clock=clock, ttl_s=100, stale_while_revalidate_s=50)
    pipeline = make_pipeline(backend, cache=cache)
    await status_of(pipeline)
    clock.now_s += 130.5
    backend.__dict__["answer"] = RESPONSE | {"id": "resp_new"}
    contexts = [make_context() for _ in range(3)]
    old = [await object_of(pipeline, make_call(**ASKED), context) for context in contexts]
    await asyncio.gather(*cache._refreshes.values())
    new = await object_of(pipeline, make_call(**ASKED), make_context())

    assert [answer["id"] for answer in (*old, new)] == [RESPONSE["id"]] * 3 + ["resp_new"]
    assert contexts[0].answer_headers == {"Cache-Status": "headgate; hit; ttl=-31", "Age": "130"}
    assert (contexts[0].record.cache, len(backend._calls)) == ("stale", 2)


async def test_a_request_with_an_age_of_its_own_gets_nothing_stale():
    """It would be older than the request allows, or it did not ask for something stale."""
    clock, backend = SettableClock(), ScriptedBackend(answer=RESPONSE)
    pipeline = cached(backend, clock=clock, ttl_s=100, stale_while_revalidate_s=50, stale_if_error_s=50)
    await status_of(pipeline)
    clock.now_s += 130

    assert await status_of(pipeline, cache_control="max-age=1000") == "fwd=request"


async def test_a_refresh_that_fails_is_logged(logged):
    """The next call tries again."""
    clock, backend = SettableClock(), ScriptedBackend(answer=RESPONSE)
    cache = make_cache(clock=clock, ttl_s=100, stale_while_revalidate_s=50)
    pipeline = make_pipeline(backend, cache=cache)
    await status_of(pipeline)
    clock.now_s += 130
    backend.__dict__["answer"] = BackendError("The backend failed.", code="upstream_error")
    for _ in range(2):
        await status_of(pipeline)
        await asyncio.gather(*cache._refreshes.values())

    assert [line["event"] for line in logged if line["event"].startswith("cache")] == [
        "cache.refreshed", "cache.refresh_failed",
    ] * 2  # fmt: skip
    assert len(backend._calls) == 3


async def test_closing_the_cache_ends_refreshes():
    """They would outlive the gateway."""
    clock, backend = SettableClock(), ScriptedBackend(answer=RESPONSE)
    cache = make_cache(clock=clock, ttl_s=100, stale_while_revalidate_s=50)
    pipeline = make_pipeline(backend, cache=cache)
    await status_of(pipeline)
    clock.now_s += 130
    await status_of(pipeline)
    await cache.close()
    await asyncio.sleep(0)

    assert (cache._refreshes, len(backend._calls)) == ({}, 1)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (BackendError("It failed."), "hit; ttl=-30; fwd=stale; fwd-status=502"),
        (BackendError("It is slow.", status=504), "hit; ttl=-30; fwd=stale; fwd-status=504"),
        (Reply(503, {}, body=b"{}"), "hit; ttl=-30; fwd=stale; fwd-status=503"),
        (Reply(429, {}, body=b"{}"), "fwd=stale"),
        (RESPONSE, "fwd=stale"),
    ],
)
async def test_a_stale_answer_is_given_when_the_backend_fails(failure: Any, status: str, stream: bool):
    """Not when it refuses the call, and not when it answers."""
    clock, backend = SettableClock(), ScriptedBackend(answer=STREAMED)
    pipeline = cached(backend, clock=clock, ttl_s=100, stale_if_error_s=50)
    await status_of(pipeline, stream=stream)
    clock.now_s += 130
    backend.__dict__["answer"] = failure
    context = make_context()
    answer = await answer_of(pipeline, make_call(**ASKED, stream=stream), context)

    assert context.answer_headers["Cache-Status"] == f"headgate; {status}"
    assert (b"Hello" in answer) == (failure is RESPONSE or status.startswith("hit"))


async def test_a_stale_answer_that_was_given_grows_older():
    """It is not kept anew."""
    clock, backend = SettableClock(), ScriptedBackend(answer=RESPONSE)
    pipeline = cached(backend, clock=clock, ttl_s=100, stale_if_error_s=50)
    await status_of(pipeline)
    backend.__dict__["answer"] = BackendError("The backend failed.")
    clock.now_s += 110
    found = [await status_of(pipeline)]
    clock.now_s += 10
    found.append(await status_of(pipeline))

    assert [status.partition("; fwd")[0] for status in found] == ["hit; ttl=-10", "hit; ttl=-20"]


async def test_an_answer_is_too_old_at_some_time():
    """Then the backend's failure is the answer."""
    clock, backend = SettableClock(), ScriptedBackend(answer=RESPONSE)
    pipeline = cached(backend, clock=clock, ttl_s=100, stale_if_error_s=50)
    await status_of(pipeline)
    clock.now_s += 151
    backend.__dict__["answer"] = BackendError("The backend failed.")
    with pytest.raises(BackendError):
        await status_of(pipeline)


async def test_a_stale_answer_replaces_no_other_failure():
    """What the backend cannot do it could not do when it was asked first."""
    clock, backend = SettableClock(), ScriptedBackend(answer=RESPONSE)
    pipeline = cached(backend, clock=clock, ttl_s=100, stale_if_error_s=50)
    await status_of(pipeline)
    clock.now_s += 130
    backend.__dict__["answer"] = BackendError("The backend has no such call.", status=501)
    with pytest.raises(BackendError, match="no such call"):
        await status_of(pipeline)


async def test_routes_share_no_answers():
    """Another route has other backends, which may answer the same call in another way."""
    pipeline = cached(ScriptedBackend(answer=RESPONSE, keeps_state=True))
    routes = [replace(pipeline.routes.match(make_call()), name=name) for name in ("one", "two", "one")]
    pipelines = [replace(pipeline, routes=Routes([route])) for route in routes]

    assert [(await status_of(each)).partition(";")[0] for each in pipelines] == [MISS, MISS, HIT]


@pytest.mark.parametrize(
    ("when", "fields", "statuses"),
    [
        ("always", {"prompt_cache_key": None}, [MISS, HIT]),
        ("always", {"background": True}, ["fwd=bypass"] * 2),
        ("always", {"tools": [{"type": "web_search"}]}, ["fwd=bypass"] * 2),
        ("deterministic", {}, ["fwd=bypass"] * 2),
        ("deterministic", {"prompt_cache_key": None, "temperature": 0}, [MISS, HIT]),
        ("never", {"temperature": 0}, ["fwd=bypass"] * 2),
        (None, {}, [MISS, HIT]),
        (None, {"prompt_cache_key": None}, ["fwd=bypass"] * 2),
    ],
)
async def test_each_route_has_its_own_rule(when: Any, fields: dict[str, Any], statuses: list[str]):
    """That of [cache] is the default."""
    backend = ScriptedBackend(answer=RESPONSE, keeps_state=True)
    pipeline = cached(backend)
    pipeline = replace(pipeline, routes=Routes([Route("route", "*", (backend,), cache=when)]))

    assert [(await status_of(pipeline, **fields)).partition(";")[0] for _ in range(2)] == statuses


@pytest.mark.parametrize(
    "output",
    [
        [],
        [{"type": "reasoning", "summary": []}],
        [{"type": "message", "content": []}],
        [{"type": "message", "content": [{"type": "output_text", "text": ""}]}],
        [{"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}],
        [{"type": "message", "content": [{"type": "output_text", "text": "I"}, {"type": "refusal", "refusal": "No."}]}],
        [{"type": "message", "status": "incomplete", "content": [{"type": "output_text", "text": "I"}]}],
    ],
)
async def test_refusals_empty_and_cut_answers_are_not_kept(output: list[Any]):
    """The next attempt may succeed."""
    for answer in (
        RESPONSE | {"output": output},
        frame(type="response.completed", response=RESPONSE | {"output": output}),
    ):
        pipeline = cached(ScriptedBackend(answer=answer, keeps_state=True))

        assert [await status_of(pipeline) for _ in range(2)] == [MISS] * 2


async def test_a_stream_can_take_the_time_that_it_took():
    """`pace = "recorded"`: in the batches in which it came; a body is given at once."""
    pipeline = cached(ScriptedBackend(answer=STREAMED), pace="recorded")
    await answer_of(pipeline, make_call(**ASKED, stream=True), make_context())
    async with replying(pipeline, make_call(**ASKED, stream=True), make_context()) as reply:
        batches = [batch async for batch in reply.batches or ()]

    assert len(batches) == len(STREAMED) // 1000 + 1
    assert b"".join([unit.sse for batch in batches for unit in batch]) == STREAMED
    assert await object_of(pipeline, make_call(**ASKED), make_context()) == RESPONSE


async def test_the_cache_control_of_a_request_reaches_the_cache(start_gateway, http, upstream: FakeUpstream):
    """Through the server, with the header's name in any case."""
    gateway = await start_gateway(tables_for(upstream, policy=[]))
    headers = {"CACHE-Control": "no-store"}
    async with http.post(f"{gateway}/v1/responses", json={"model": "m", **ASKED}, headers=headers) as answer:
        assert answer.headers["Cache-Status"] == "headgate; fwd=bypass; detail=no-store"


@pytest.mark.parametrize(
    "cache", [Cache(None, None), Cache(CacheTable(use="memory"), None), Cache(None, MemoryStore())]
)
async def test_without_a_cache_there_is_no_cache_status(cache: Cache):
    """Nothing is kept either."""
    backend = ScriptedBackend(answer=RESPONSE)
    pipeline = make_pipeline(backend, cache=cache)
    for _ in range(2):
        context = make_context()
        await answer_of(pipeline, make_call(**ASKED), context)

        assert (context.answer_headers, context.record.cache) == ({}, None)
    assert len(backend._calls) == 2


async def test_an_empty_output_is_filled_from_the_items():
    """Some servers stream items and then send `output: []`; the kept object has the items."""
    last = frame(type="response.completed", response=RESPONSE | {"output": []})
    pipeline = cached(ScriptedBackend(answer=b"".join([*CANONICAL[:-1], last])))
    await status_of(pipeline, stream=True)

    assert await object_of(pipeline, make_call(**ASKED), make_context()) == RESPONSE


@pytest.mark.parametrize("failing", ["read_fails", "write_fails"])
async def test_a_fault_of_the_store_is_a_miss(failing: str, logged):
    """The answer is passed on, and the fault is logged."""
    backend = ScriptedBackend(answer=RESPONSE)
    pipeline = cached(backend, store=BrokenStore(**{failing: True}))

    assert [await status_of(pipeline) for _ in range(2)] == ["fwd=uri-miss"] * 2
    assert {(line["event"], line["error"]) for line in logged} == {
        (f"cache.{failing.replace('fails', 'failed')}", "The store cannot be reached.")
    }


@pytest.mark.parametrize("store", [MemoryStore(), OneByOneStore()], ids=["at once", "awaited"])
async def test_a_key_that_cannot_be_read_is_replaced(store: Store, logged):
    """Such as one that holds something else; when it can be read again that is logged."""
    backend = ScriptedBackend(answer=RESPONSE)
    pipeline = cached(backend, store=store, local_ttl_s=0)
    await status_of(pipeline)
    (key,) = [key async for key in store.scan(ENTRIES)]
    await store.delete(key)
    await store.append(key, b"entry", ttl_s=60)

    assert [await status_of(pipeline) for _ in range(2)] == ["fwd=uri-miss", "hit; ttl=3600"]
    assert [line["event"] for line in logged] == ["cache.read_failed", "cache.read_resumed"]


async def test_a_long_fault_of_the_store_is_logged_in_part(logged):
    """The text comes from outside and has no limit of its own."""
    reason = "x" * 1_000
    for failing in ("read_fails", "write_fails"):
        await status_of(cached(ScriptedBackend(answer=RESPONSE), store=BrokenStore(**{failing: True}, reason=reason)))
    await make_cache(BrokenStore(read_fails=True, reason=reason)).forget("search", "resp_1")

    assert [(line["event"], line["error"]) for line in logged] == [
        (f"cache.{action}_failed", "x" * 200) for action in ("read", "write", "delete")
    ]


async def test_a_damaged_entry_is_a_miss():
    """And is replaced by the new answer."""
    store = MemoryStore()
    backend = ScriptedBackend(answer=RESPONSE)
    pipeline = cached(backend, store=store, local_ttl_s=0)
    await status_of(pipeline)
    (key,) = [key async for key in store.scan(ENTRIES)]
    for value in (b"{}", b"[]", (await store.get(key) or b"")[:-2000]):
        await store.put(key, value, ttl_s=60)

        assert await status_of(pipeline) == "fwd=uri-miss"
        assert (await status_of(pipeline)).startswith("hit")


async def test_an_entry_whose_stream_has_no_end_is_a_miss():
    """For a stream; a call for a body gets the response of the entry."""
    store = MemoryStore()
    pipeline = cached(ScriptedBackend(answer=STREAMED), store=store)
    await status_of(pipeline, stream=True)
    (key,) = [key async for key in store.scan(ENTRIES)]
    value = await store.get(key) or b""
    await store.put(key, value[: value.rindex(b"event: response.completed")], ttl_s=60)

    assert (await status_of(pipeline)).startswith("hit")
    assert await status_of(pipeline, stream=True) == "fwd=uri-miss"


async def test_a_stream_that_is_not_utf_8_is_kept_as_it_is():
    """A hit has the bytes that were received."""
    invalid = STREAMED.replace(b'"delta":"Hel"', b'"delta":"H\xff"')
    assert invalid != STREAMED
    backend = ScriptedBackend(answer=invalid)
    pipeline = cached(backend)
    answers = [await answer_of(pipeline, make_call(**ASKED, stream=True), make_context()) for _ in range(2)]

    assert (answers, len(backend._calls)) == ([invalid, invalid], 1)


async def test_a_response_of_254_levels_is_kept_as_it_is():
    """It is not encoded again."""
    backend = ScriptedBackend(answer=RESPONSE | {"deep": nested(252)}, keeps_state=True)
    pipeline = cached(backend)
    answers = [await answer_of(pipeline, make_call(**ASKED), make_context()) for _ in range(2)]

    assert (answers, len(backend._calls)) == ([orjson.dumps(backend.answer)] * 2, 1)


async def test_a_stream_whose_response_cannot_be_encoded_passes_and_is_not_kept(logged):
    """Its object has more levels than JSON can be written with."""
    last = CANONICAL[-1].replace(b'"output":[', b'"deep":' + b"[" * 300 + b"]" * 300 + b',"output":[')
    deep = b"".join([*CANONICAL[:-1], last])
    pipeline = cached(ScriptedBackend(answer=deep, keeps_state=True))
    answers = [await answer_of(pipeline, make_call(**ASKED, stream=True), make_context()) for _ in range(2)]

    assert answers == [deep, deep]
    assert [line["event"] for line in logged] == ["cache.write_failed"] * 2


async def test_policies_are_applied_to_kept_answers():
    """A budget of 2 items stops an answer that was kept with 9."""
    items = [{"id": f"fc_{n}", "type": "function_call", "name": "f", "arguments": "{}"} for n in range(9)]
    done = [frame(type="response.output_item.done", output_index=n, item=item) for n, item in enumerate(items)]
    stream = b"".join([CANONICAL[0], *done, frame(type="response.completed", response=RESPONSE | {"output": items})])
    for form in (stream, RESPONSE | {"output": items}):
        backend = ScriptedBackend(answer=form)
        pipeline = cached(backend, [make_rule(ItemBudget(items=2), callers=compile_selector(["ben"]))])
        whole = await object_of(pipeline, make_call(**ASKED), make_context())
        context = make_context(BEN)
        cut = await object_of(pipeline, make_call(**ASKED), context)
        frames = await answer_of(pipeline, make_call(**ASKED, stream=True), make_context(BEN))

        assert (len(whole["output"]), context.record.cache, len(backend._calls)) == (9, "hit", 1)
        assert (len(cut["output"]), cut["incomplete_details"]) == (2, {"reason": "itembudget"})
        if form is stream:
            assert events_in(frames)[-1]["response"]["output"] == items[:2]


async def test_an_answer_that_a_policy_changed_is_not_kept():
    """The policy may not apply to the next caller."""
    for form in (STREAMED, RESPONSE):
        backend = ScriptedBackend(answer=form)
        pipeline = cached(backend, [make_rule(Capitals(), callers=compile_selector(["anna"]))])
        changed = await answer_of(pipeline, make_call(**ASKED), make_context())
        original = await object_of(pipeline, make_call(**ASKED), make_context(BEN))
        again = await status_of(pipeline, BEN)

        assert b"HELLO." in changed or form is STREAMED
        assert original == RESPONSE
        assert (again, len(backend._calls)) == ("hit; ttl=3600", 2)


async def test_an_answer_that_a_policy_stopped_is_not_kept():
    """The next caller may have a budget."""
    backend = ScriptedBackend(answer=STREAMED)
    pipeline = cached(backend, [make_rule(ItemBudget(items=1), callers=compile_selector(["anna"]))])
    await status_of(pipeline, stream=True)

    assert await answer_of(pipeline, make_call(**ASKED, stream=True), make_context(BEN)) == STREAMED
    assert len(backend._calls) == 2


async def test_an_answer_that_its_owner_deleted_is_forgotten():
    """By the id of its response; another team drops nothing."""
    cache = make_cache()
    pipeline = make_pipeline(ScriptedBackend(answer=RESPONSE), cache=cache)
    await status_of(pipeline)
    await cache.forget("sales", RESPONSE["id"])
    await cache.forget("search", "resp_other")
    before = await status_of(pipeline)
    await cache.forget("search", RESPONSE["id"])

    assert before.startswith("hit")
    assert await status_of(pipeline) == "fwd=uri-miss"


async def test_nothing_is_noted_of_an_answer_that_is_not_stored():
    """It has no endpoint that could delete it; without a cache there is nothing to forget."""
    store = MemoryStore()
    await status_of(cached(ScriptedBackend(answer=RESPONSE), store=store), store=False)
    await Cache(None, None).forget("search", RESPONSE["id"])

    assert [key async for key in store.scan(f"{PREFIX}i:")] == []
    assert len([key async for key in store.scan(ENTRIES)]) == 1


async def test_a_fault_of_the_store_does_not_fail_a_deletion(logged):
    """It is logged: the answer may be given again until it expires."""
    await make_cache(BrokenStore(read_fails=True)).forget("search", "resp_1")

    assert [line["event"] for line in logged] == ["cache.delete_failed"]


async def test_an_answer_that_could_not_be_stored_is_not_kept():
    """Its id could not be continued by the next caller."""
    pipeline = cached(ScriptedBackend(answer=RESPONSE | {"id": 7}))

    assert [await status_of(pipeline) for _ in range(2)] == ["fwd=uri-miss"] * 2
