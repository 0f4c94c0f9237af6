"""Identical calls in flight in several processes: one of them calls the backend."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.cache.entry import echoed_fields
from proxy.cache.shared_flight import POLL_S
from proxy.cache.slot import CacheSlot
from proxy.cache.vault import Vault
from proxy.cache.vault_keys import PREFIX
from proxy.stores import Store, StoreError
from proxy.stores.memory import MemoryStore
from proxy.stores.redis import RedisStore
from proxy.stores.sqlite import SqliteStore
from proxy.wire.call import Call
from proxy.wire.errors import BackendError
from proxy.wire.event import Reply
from tests.cache.test_cache import ASKED, OLD, SECRET, STREAMED, cached, nested
from tests.cache.test_flights import COLLAPSED, GatedBackend, asking, settle
from tests.examples import make_call, make_context
from tests.pipelines import ScriptedBackend, answer_of
from tests.redis_server import RedisServer
from tests.rules.samples import RESPONSE
from tests.stores.one_by_one import OneByOneStore
from tests.stores.test_redis_cluster import running_cluster
from tests.wire.streams import CANONICAL, events_in

TIMEOUT_MS = 30_000


class WaitedStore(MemoryStore):
    """A store in memory whose lookups are waited for, as those of all other stores are: they can be counted."""

    @property
    def peek(self) -> None:
        return None


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    with running_cluster(tmp_path_factory) as nodes:
        yield nodes


@pytest.fixture(params=["memory", "sqlite", "redis", "cluster"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """A store that two caches share as two processes do."""
    match request.param:
        case "memory":
            store: Store = WaitedStore()
        case "sqlite":
            store = SqliteStore(path=tmp_path / "cache", timeout_ms=TIMEOUT_MS)
        case "redis":
            store = RedisStore(url=request.getfixturevalue("redis_server").url, timeout_ms=TIMEOUT_MS)
        case _:
            first, *others = request.getfixturevalue("cluster")
            nodes = [f"127.0.0.1:{node.port}" for node in others]
            store = RedisStore(url=first.url, cluster_nodes=nodes, timeout_ms=TIMEOUT_MS)
    await store.start()
    yield store
    await store.close()


def processes(store: Store, *backends: Any, **options: Any) -> list[Any]:
    """Return the pipelines of processes that share a store, each with its backend."""
    return [cached(backend, store=store, collapse="shared", **options) for backend in backends]


def unique() -> dict[str, Any]:
    """Return the fields of a call that no other test makes."""
    return {"input": secrets.token_hex(8)}


async def called(*backends: Any, count: int = 1) -> None:
    """Wait until backends have been called so often, all together."""
    async with asyncio.timeout(60):
        while sum(len(backend._calls) for backend in backends) < count:  # noqa: ASYNC110  across stores
            await asyncio.sleep(0.01)


def count_steps(store: Store) -> asyncio.Semaphore:
    """Return what is released by each lookup, and whenever a process begins to lead, or knows that the one that leads lives."""
    known, put, get, get_many = asyncio.Semaphore(0), store.put, store.get, store.get_many
    followers = set[Any]()

    async def counted_put(key: str, *args: Any, **options: Any) -> bool:
        kept = await put(key, *args, **options)
        if kept and key.startswith(f"{PREFIX}f:"):
            known.release()
        return kept

    async def counted_get(key: str) -> bytes | None:
        found, task = await get(key), asyncio.current_task()
        if found and key.startswith(f"{PREFIX}a:") and task not in followers:  # until then another one may lead
            followers.add(task)
            known.release()
        return found

    async def counted_get_many(keys: Any) -> Any:
        found = await get_many(keys)
        known.release()
        return found

    vars(store).update(put=counted_put, get=counted_get, get_many=counted_get_many)
    return known


@pytest.mark.parametrize("form", [STREAMED, RESPONSE])
@pytest.mark.parametrize("options", [{}, {"secrets": (SECRET, OLD)}])
async def test_processes_share_one_call(store: Store, form: Any, options: dict[str, Any]):
    """Streamed or not, sealed or not; nothing is left in the way of the next one."""
    backends = [GatedBackend(answer=form) for _ in range(3)]
    pipelines, fields, known = processes(store, *backends, **options), unique(), count_steps(store)
    calls = [asking(pipeline, stream=stream, **fields) for stream in (True, False) for pipeline in pipelines]
    for _ in range(len(calls) + 1 + len(pipelines)):  # the lookups, one more of the process that leads, and who leads
        await known.acquire()
    await called(*backends)
    for backend in backends:
        backend._gate.set()
    answers = await asyncio.gather(*(task for _, task in calls))

    assert sum(len(backend._calls) for backend in backends) == 1
    for answer in answers:
        assert (orjson.loads(answer) if answer.startswith(b"{") else events_in(answer)[-1]["response"]) == RESPONSE
    if form is STREAMED:
        assert answers[:3] == [STREAMED] * 3
    statuses = sorted(context.answer_headers["Cache-Status"] for context, _ in calls)
    assert statuses.count("headgate; fwd=uri-miss") == 1
    assert statuses.count(COLLAPSED) == 5
    assert [name async for name in store.scan(f"{PREFIX}f:")] == []


async def test_another_process_gets_its_own_echoed_fields(store: Store):
    """The journal has those of the first caller."""
    backends = [GatedBackend(answer=RESPONSE | {"user": "first"}), GatedBackend(answer=RESPONSE)]
    pipelines, fields = processes(store, *backends), unique()
    first = asking(pipelines[0], user="first", **fields)[1]
    await called(*backends)
    second = asking(pipelines[1], user="second", **fields)[1]
    backends[0]._gate.set()

    assert [orjson.loads(await task)["user"] for task in (first, second)] == ["first", "second"]
    assert len(backends[1]._calls) == 0


@pytest.mark.parametrize("failure", [BackendError("It failed."), Reply(400, {}, body=b"{}")])
async def test_another_process_is_released_by_a_failure(store: Store, failure: Any):
    """It asks its own backend."""
    backends = [GatedBackend(answer=failure), ScriptedBackend(answer=RESPONSE)]
    pipelines, fields = processes(store, *backends), unique()
    first = asking(pipelines[0], **fields)[1]
    await called(*backends)
    second = asking(pipelines[1], **fields)[1]
    await asyncio.sleep(2 * POLL_S)
    backends[0]._gate.set()
    await asyncio.wait([first])

    assert orjson.loads(await second) == RESPONSE


async def test_the_work_goes_on_for_another_process(store: Store):
    """Every caller of the process that leads has left; the last one accounts for the tokens, which are known at the end."""
    backends = [GatedBackend(answer=STREAMED), GatedBackend(answer=STREAMED)]
    pipelines, fields = processes(store, *backends), unique()
    leader, first = asking(pipelines[0], stream=True, **fields)
    await called(*backends)
    follower, second = asking(pipelines[1], stream=True, **fields)
    token = (await store.get(await flight_name(store, pipelines[0], fields)) or b"").decode()
    async with asyncio.timeout(60):
        while await store.get(f"{PREFIX}w:{token}") is None:  # noqa: ASYNC110  across stores
            await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.wait([first], timeout=2 * POLL_S)
    backends[0]._gate.set()

    assert await second == STREAMED
    assert len(backends[1]._calls) == 0
    await asyncio.wait([first])
    usage = RESPONSE["usage"]
    counts = usage["input_tokens"], usage["output_tokens"]
    assert (leader.record.input_tokens, leader.record.output_tokens, leader.record.estimated) == (*counts, None)
    assert (follower.record.saved_input_tokens, follower.record.saved_output_tokens) == counts
    assert follower.record.input_tokens is None


async def test_the_work_ends_when_no_process_needs_it(store: Store):
    """The upstream's connection is closed at once."""
    backend = GatedBackend(answer=STREAMED)
    (pipeline,) = processes(store, backend)
    first = asking(pipeline, stream=True, **unique())[1]
    await called(backend)
    first.cancel()
    await asyncio.wait([first])

    assert backend._closed == 1


async def test_a_follower_leads_when_the_leader_is_gone(store: Store):
    """Nothing was passed on yet; the lease of a process that died runs out."""
    backend = ScriptedBackend(answer=RESPONSE)
    (pipeline,) = processes(store, backend)
    fields = unique()
    name = await flight_name(store, pipeline, fields)
    await store.put(name, b"a process that died", ttl_s=1.0)
    answer = await answer_of(pipeline, make_call(**ASKED | fields), make_context())

    assert orjson.loads(answer) == RESPONSE
    assert len(backend._calls) == 1


async def address_of(pipeline: Any, call: Call) -> Any:
    """Return the address of a call in the cache."""
    slot = pipeline.cache.slot(call, pipeline.routes.match(call), make_context())
    return (slot if isinstance(slot, CacheSlot) else await slot).address


async def plant_flight(store: Store, pipeline: Any, fields: dict[str, Any], frames: bytes) -> Sequence[str]:
    """Leave what a process writes up to so much of its reply. Return the names of what runs out when it dies."""
    token, vault, probe = secrets.token_hex(16), Vault(store), make_call(**ASKED | fields)
    address = await address_of(pipeline, probe)
    head = {"kind": "head", "headers": {}, "target": None, "echoed": echoed_fields(probe), "is_body": False}
    messages = [(head, b""), *([({"kind": "frames"}, frames)] if frames else [])]
    for number, (facts, content) in enumerate(messages, 1):
        text = orjson.dumps(facts)
        message = vault.seal_message(address, f"{token}:{number}", len(text).to_bytes(4) + text + content)
        await store.append(f"{PREFIX}j:{token}", message, ttl_s=60)
    names = f"{PREFIX}f:{address.keys[0]}", f"{PREFIX}a:{token}"
    for name, value in zip(names, (token.encode(), b"1"), strict=True):
        await store.put(name, value, ttl_s=60)
    return names


async def die(store: Store, names: Sequence[str], known: asyncio.Semaphore, steps: int) -> None:
    """Let the process that leads die as soon as others have made so many steps to follow it."""
    for _ in range(steps):
        await known.acquire()
    for name in names:
        await store.delete(name)


BEGUN = b"".join(CANONICAL[:5])


async def test_a_stream_breaks_off_when_its_leader_dies(store: Store):
    """What was passed on cannot be taken back: the stream ends as failed, and no backend is asked."""
    backend = ScriptedBackend(answer=STREAMED)
    (pipeline,) = processes(store, backend)
    fields = unique()
    names = await plant_flight(store, pipeline, fields, BEGUN)
    known = count_steps(store)
    call = asking(pipeline, stream=True, **fields)[1]
    await die(store, names, known, steps=2)
    events = events_in(await call)

    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] == "response.failed"
    assert len(backend._calls) == 0


async def test_a_stream_of_which_nothing_came_begins_again_when_its_leader_dies(store: Store):
    """There was a head only: its clients have got nothing."""
    backends = [ScriptedBackend(answer=STREAMED) for _ in range(2)]
    pipelines, fields = processes(store, *backends), unique()
    names = await plant_flight(store, pipelines[0], fields, b"")
    known = count_steps(store)
    calls = [asking(pipeline, stream=True, **fields)[1] for pipeline in pipelines for _ in range(2)]
    await die(store, names, known, steps=len(calls) + len(pipelines))

    assert await asyncio.gather(*calls) == [STREAMED] * 4
    assert sum(len(backend._calls) for backend in backends) == 1


async def test_a_call_without_a_stream_begins_again_when_its_leader_dies(store: Store):
    """Its client has got nothing either, whichever call begins it in its process; one call of a backend is for all."""
    backends = [GatedBackend(answer=STREAMED) for _ in range(2)]
    pipelines, fields = processes(store, *backends), unique()
    names = await plant_flight(store, pipelines[0], fields, BEGUN)
    known = count_steps(store)
    streams = [asking(pipeline, stream=True, **fields)[1] for pipeline in pipelines]
    calls = [asking(pipeline, **fields) for pipeline in pipelines for _ in range(2)]
    await die(store, names, known, steps=len(streams) + len(calls) + len(pipelines))
    assert [events_in(await stream)[-1]["type"] for stream in streams] == ["response.failed"] * 2
    for _ in range(3):  # one leads and looks again, the other one finds it
        await known.acquire()
    for backend in backends:
        backend._gate.set()

    assert [orjson.loads(await task) for _, task in calls] == [RESPONSE] * 4
    assert sum(len(backend._calls) for backend in backends) == 1
    assert [context.record.cache for context, _ in calls].count("miss") == 1
    again = asking(pipelines[0], **fields)
    assert (orjson.loads(await again[1]), again[0].record.cache) == (RESPONSE, "hit")
    assert sorted(context.record.input_tokens or 0 for context, _ in calls) == [
        0,
        0,
        0,
        RESPONSE["usage"]["input_tokens"],
    ]


async def flight_name(store: Store, pipeline: Any, fields: dict[str, Any]) -> str:
    """Return the name of the flight of a call."""
    address = await address_of(pipeline, make_call(**ASKED | fields))
    return f"{PREFIX}f:{address.keys[0]}"


async def test_garbage_in_a_journal_shares_nothing(store: Store):
    """The call asks its own backend once the lease is over."""
    backend = ScriptedBackend(answer=RESPONSE)
    (pipeline,) = processes(store, backend)
    fields = unique()
    token = secrets.token_hex(16)
    await store.append(f"{PREFIX}j:{token}", b"garbage", ttl_s=60)
    await store.put(await flight_name(store, pipeline, fields), token.encode(), ttl_s=1.0)

    assert orjson.loads(await answer_of(pipeline, make_call(**ASKED | fields), make_context())) == RESPONSE


HEAD = {
    "kind": "head", "headers": {}, "target": None, "is_body": False,
    "echoed": {"metadata": None, "safety_identifier": None, "user": None},
}  # fmt: skip
FRAMES = ({"kind": "frames"}, BEGUN)
SHAPES: dict[str, list[tuple[Any, bytes]]] = {
    "no field": [({"kind": "head"}, b"")],
    "an unknown kind": [({"kind": "x"}, b""), FRAMES],
    "a kind that is none": [({"kind": [1]}, b""), FRAMES],
    "headers that are none": [(HEAD | {"headers": 7}, b""), FRAMES],
    "headers of others": [(HEAD | {"headers": {"set-cookie": "a"}}, b""), FRAMES],
    "a header that is no text": [(HEAD | {"headers": {"x-headgate-a": 7}}, b""), FRAMES],
    "a header of two lines": [(HEAD | {"headers": {"x-headgate-a": "b\r\nc: d"}}, b""), FRAMES],
    "a target that is none": [(HEAD | {"target": {}}, b""), FRAMES],
    "echoed fields that are none": [(HEAD | {"echoed": []}, b""), FRAMES],
    "echoed fields that are missing": [(HEAD | {"echoed": {}}, b""), FRAMES],
    "a body that is not JSON": [(HEAD | {"is_body": True}, b"{")],
    "a body that is no object": [(HEAD | {"is_body": True}, b"[]")],
    "no body": [(HEAD | {"is_body": True}, b"")],
    "a list": [([HEAD], b"")],
}  # fmt: skip


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("messages", SHAPES.values(), ids=SHAPES)
async def test_a_journal_of_another_shape_shares_nothing(messages: list[tuple[Any, bytes]], *, stream: bool):
    """Such as that of another version: every call is answered, by its own backend."""
    store, backend, fields, token = MemoryStore(), ScriptedBackend(answer=STREAMED), unique(), secrets.token_hex(16)
    (pipeline,) = processes(store, backend)
    vault, probe = Vault(store), make_call(**ASKED | fields)
    address = await address_of(pipeline, probe)
    for number, (facts, content) in enumerate(messages, 1):
        text = orjson.dumps(facts)
        message = vault.seal_message(address, f"{token}:{number}", len(text).to_bytes(4) + text + content)
        await store.append(f"{PREFIX}j:{token}", message, ttl_s=60)
    await store.put(f"{PREFIX}f:{address.keys[0]}", token.encode(), ttl_s=0.3)
    context = make_context()
    answer = await answer_of(pipeline, make_call(**ASKED | fields, stream=stream), context)

    assert (answer if stream else orjson.loads(answer)) == (STREAMED if stream else RESPONSE)
    assert (len(backend._calls), context.record.cache) == (1, "miss")


@pytest.mark.parametrize("form", [STREAMED, RESPONSE], ids=["a stream", "a body"])
async def test_what_cannot_be_written_to_a_journal_is_not_shared(form: Any):
    """The facts of a head are two levels deeper than the fields of a call."""
    backends = [GatedBackend(answer=form) for _ in range(2)]
    pipelines, fields = processes(MemoryStore(), *backends), unique() | {"metadata": {"deep": nested(251)}}
    first = asking(pipelines[0], stream=True, **fields)[1]
    await called(*backends)
    second = asking(pipelines[1], stream=True, **fields)[1]
    await settle()
    for backend in backends:
        backend._gate.set()

    assert [events_in(await task)[-1]["type"] for task in (first, second)] == ["response.completed"] * 2
    assert [len(backend._calls) for backend in backends] == [1, 1]


class FailingStore(OneByOneStore):
    """Fails the verbs named in `failing`."""

    failing: tuple[str, ...] = ()

    async def append(self, key: str, value: bytes, *, ttl_s: float, group: str = "") -> int:
        if "append" in self.failing:
            raise StoreError("down")
        return await super().append(key, value, ttl_s=ttl_s, group=group)

    async def put(self, key: str, value: bytes, *, ttl_s: float, if_absent: bool = False, group: str = "") -> bool:
        if "put" in self.failing:
            raise StoreError("down")
        return await super().put(key, value, ttl_s=ttl_s, if_absent=if_absent, group=group)


@pytest.mark.parametrize("verb", ["append", "put"])
async def test_a_store_that_fails_shares_nothing(verb: str):
    """The call is answered without the others."""
    backend = ScriptedBackend(answer=STREAMED)
    (pipeline,) = processes(FailingStore(failing=(verb,)), backend)

    assert await answer_of(pipeline, make_call(**ASKED, stream=True), make_context()) == STREAMED
    assert len(backend._calls) == 1


async def test_a_store_that_fails_for_some_time_is_logged_twice(logged):
    """When it begins, and when calls are shared again."""
    store = FailingStore(failing=("put",))
    (pipeline,) = processes(store, ScriptedBackend(answer=STREAMED))
    for number in range(4):
        if number == 3:
            vars(store)["failing"] = ()
        await answer_of(pipeline, make_call(**ASKED, seed=number, stream=True), make_context())
    shared = [line for line in logged if line["event"].startswith("cache.share")]

    assert [(line["event"], line.get("failures")) for line in shared] == [
        ("cache.share_failed", None), ("cache.share_resumed", 3),
    ]  # fmt: skip
