"""A directory that follows the issued keys in a store, while that changes, fails and loses them."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field

import orjson
import pytest
import redis
from multidict import CIMultiDict

from proxy.config.build import build
from proxy.context import Caller
from proxy.identity.directory import Directory
from proxy.identity.issued_keys import IssuedKeys
from proxy.identity.key_book import (
    JOURNAL,
    IssuedKey,
    KeyBook,
    append_created,
    append_revoked,
    append_rotated,
    used_key,
)
from proxy.identity.key_format import make_key
from proxy.stores import Store
from proxy.stores.memory import MemoryStore
from proxy.wire.errors import HeadgateError
from tests.configs import config_with
from tests.loop_work import observed_loop
from tests.redis_server import RedisServer

START = 1_000_000.0


@dataclass
class Worker:
    """The keys as one process knows them, at a time that the test sets."""

    store: Store
    now: float = START
    directory: Directory = field(default_factory=lambda: Directory({}, has_issued=True))

    def __post_init__(self) -> None:
        self.keys = IssuedKeys(self.store, self.directory, 0.5, lambda: self.now)

    def ask(self, key: str) -> str:
        """Return the name of the caller, or the code of the refusal."""
        try:
            return self.directory.identify(CIMultiDict({"Authorization": f"Bearer {key}"})).name
        except HeadgateError as error:
            return error.code or ""


def issue(name: str, expires_at: float | None = None) -> tuple[str, IssuedKey]:
    secret = make_key()
    return secret, IssuedKey.of(secret, name, "search", START, expires_at=expires_at)


@pytest.fixture
async def store(state_table: dict) -> AsyncIterator[Store]:
    """A store of each kind, without keys."""
    opened = build({**config_with(), "state": state_table}).state
    await opened.start()
    await opened.delete(JOURNAL)
    yield opened
    await opened.delete(JOURNAL)
    await opened.close()


async def test_a_key_of_a_team_that_is_a_lone_caller_is_refused(store: Store):
    """It would share that caller's cached answers and budgets; a config that gives the caller a team lifts it."""
    worker, anna = Worker(store), Caller("search", "search")
    (key, issued), digest = issue("ada"), hashlib.sha256(b"sk-search").digest()
    await append_created(store, issued)
    await worker.keys.refresh()
    seen = [worker.ask(key)]
    for teamless in ({"search"}, set(), {"other"}):
        worker.directory.replace({digest: anna}, teamless)
        seen.append(worker.ask(key))
    worker.directory.replace({digest: anna}, {"search"})

    assert seen == ["ada", "token_not_allowed", "ada", "ada"]
    assert (worker.ask(key), worker.ask("sk-search"), worker.ask("sk-other")) == (
        "token_not_allowed", "search", "invalid_api_key",
    )  # fmt: skip


async def test_every_worker_follows_what_is_changed(store: Store):
    """A key that is created, replaced for a time, and revoked."""
    first, second = Worker(store), Worker(store)
    (ada, ada_key), (newer, newer_key) = issue("ada"), issue("ada")
    seen = []
    await append_created(store, ada_key)
    for step in (lambda: append_rotated(store, ada_key, newer_key, START + 10), lambda: append_revoked(store, newer_key, START)):  # fmt: skip
        for worker in (first, second):
            await worker.keys.refresh()
            seen.append((worker.ask(ada), worker.ask(newer)))
        await step()
    for worker in (first, second):
        await worker.keys.refresh()
        worker.now += 10
        before = worker.ask(ada)
        await worker.keys.refresh()
        seen.append((before, worker.ask(ada), worker.ask(newer)))

    unknown = "invalid_api_key"
    assert seen == [("ada", unknown)] * 2 + [("ada", "ada")] * 2 + [("ada", unknown, unknown)] * 2
    assert await KeyBook().read_on(store) == await first.keys._book.read_on(store)


async def test_a_clock_that_jumps_and_is_set_back_ends_no_key(store: Store):
    """A key that has not expired is valid again, and one that has is refused, whatever the clock said meanwhile."""
    worker, (ada, key) = Worker(store), issue("ada", START + 100)
    await append_created(store, key)
    seen = []
    for now in (START, START + 5_000, START + 10, START - 5_000, START + 101):
        worker.now = now
        await worker.keys.refresh()
        seen.append(worker.ask(ada))

    assert seen == ["ada", "invalid_api_key", "ada", "ada", "invalid_api_key"]


async def test_many_changes_are_read_in_parts(store: Store):
    """And none of them twice; what is no change is left out."""
    keys = [issue(f"caller-{number}") for number in range(30)]
    worker = Worker(store)
    for number, (_, key) in enumerate(keys):
        await append_created(store, key)
        if number % 10 == 0:
            await store.append(JOURNAL, b'{"op": "unknown"}' if number else b"[", ttl_s=60)
            await worker.keys.refresh()
    await worker.keys.refresh()

    assert [worker.ask(secret) for secret, _ in keys] == [key.name for _, key in keys]


async def test_keys_are_gone_with_the_journal(store: Store, logged):
    """A store that lost its data, and has fewer or other entries since, is read from the start."""
    worker, (ada, ada_key), (ben, ben_key) = Worker(store), issue("ada"), issue("ben")
    await append_created(store, ada_key)
    await worker.keys.refresh()
    await store.delete(JOURNAL)
    await append_created(store, ben_key)
    await worker.keys.refresh()
    replaced = (worker.ask(ada), worker.ask(ben))
    await store.delete(JOURNAL)
    await worker.keys.refresh()

    assert (replaced, worker.ask(ben)) == (("invalid_api_key", "ben"), "invalid_api_key")
    assert [line["event"] for line in logged] == ["keys.reset"] * 2


async def test_it_is_kept_when_a_key_was_used_last(store: Store):
    worker, (ada, ada_key) = Worker(store), issue("ada")
    await append_created(store, ada_key)
    await worker.keys.refresh()
    await worker.keys.write_uses()
    unused = await store.get(used_key(ada_key.id))
    worker.ask(ada)
    await worker.keys.write_uses()

    assert (unused, await store.get(used_key(ada_key.id))) == (None, b"1000000")


@pytest.mark.parametrize("fault", ["stop", "pause"])
async def test_known_keys_stay_valid_while_the_store_is_away(redis_server: RedisServer, fault: str, logged):
    """Until they expire. One that is not known may be new, if its checksum fits: 503, not 401."""
    table = {"use": "redis", "url": redis_server.url, "timeout_ms": 500, "max_faults": 1}
    store = build({**config_with(), "state": table}).state
    await store.start()
    await store.delete(JOURNAL)
    keys = {name: issue(name, expires_at=START + 5 if name == "brief" else None) for name in ("ada", "brief", "gone")}
    for _, key in keys.values():
        await append_created(store, key)
    await append_revoked(store, keys["gone"][1], START)
    worker, late = Worker(store), Worker(store)
    await worker.keys.refresh()
    getattr(redis_server, fault)()
    try:
        worker.now += 5
        for each in (worker, late):
            await each.keys.refresh()
        known = [worker.ask(secret) for secret, _ in keys.values()]
        others = [worker.ask(secret) for secret in (make_key(), make_key()[:-1] + "!", "sk-ada", keys["ada"][0] + "0")]
        of_late = late.ask(keys["ada"][0])
    finally:
        redis_server.resume()
        if fault == "stop":
            redis_server.start()
        await store.close()

    assert known == ["ada", "invalid_api_key", "invalid_api_key"]
    assert others == ["keys_unavailable"] + ["invalid_api_key"] * 3
    assert of_late == "keys_unavailable"
    lines = [line for line in logged if line["event"].startswith("keys.")]
    assert [line["event"] for line in lines] == ["keys.unavailable"] * 2
    assert all(line["error"].startswith("Redis: ") for line in lines), lines


async def test_a_gateway_with_keys_is_not_open_before_the_first_one():
    worker = Worker(MemoryStore())
    await worker.keys.refresh()

    assert not worker.directory.is_open
    assert worker.ask("anything") == "invalid_api_key"


ODD_ENTRIES = {
    "no JSON": b"{",
    "a list": b"[]",
    "another kind": b'{"op":"grant"}',
    "an unknown key": b'{"op":"revoke","id":"key_000000000000","at":1}',
    "a text as a time": b'{"op":"rotate","id":"%b","until":"soon","key":{}}',
    "no time of revocation": b'{"op":"revoke","id":"%b","at":null}',
    "a key that expires as a text": b'{"op":"create","key":{%b,"expires_at":"soon"}}',
    "a key without a name": b'{"op":"create","key":{%b,"name":null}}',
    "a key of a short hash": b'{"op":"create","key":{%b,"digest":"00"}}',
    "a key of odd models": b'{"op":"create","key":{%b,"models":[7]}}',
    "a key of odd tags": b'{"op":"create","key":{%b,"tags":[["a"]]}}',
}


@pytest.mark.parametrize("entry", ODD_ENTRIES.values(), ids=ODD_ENTRIES)
async def test_an_odd_entry_is_left_out_and_the_next_is_read(entry: bytes, logged):
    """Keys are followed as before: one that is revoked later is refused."""
    store, (secret, key) = MemoryStore(), issue("ada")
    worker = Worker(store)
    await append_created(store, key)
    fields = orjson.dumps(asdict(issue("ben")[1]))[1:-1]
    filled = entry % (fields if b"create" in entry else key.id.encode()) if b"%b" in entry else entry
    await store.append(JOURNAL, filled, ttl_s=60)
    await worker.keys.refresh()

    assert worker.ask(secret) == "ada"
    assert "keys.entry_ignored" in [line["event"] for line in logged]

    await append_revoked(store, key, START)
    await worker.keys.refresh()

    assert worker.ask(secret) == "invalid_api_key"


async def test_unknown_keys_reach_no_store(redis_server: RedisServer):
    """However many are sent, and whether or not the store can be read; nothing is kept of them either."""
    store = build({**config_with(), "state": {"use": "redis", "url": redis_server.url}}).state
    await store.start()
    worker = Worker(store)
    await worker.keys.refresh()
    answers = set()
    with redis.Redis.from_url(redis_server.url) as observer:
        before = observer.info("stats")["total_commands_processed"]
        for is_current in (True, False):
            worker.directory.is_current = is_current
            answers |= {worker.ask(make_key()) for _ in range(2_000)}
        after = observer.info("stats")["total_commands_processed"]
    await store.close()

    assert answers == {"invalid_api_key", "keys_unavailable"}
    assert after == before + 1  # which is the first question
    assert worker.directory._keyed == {}


async def test_many_keys_are_read_beside_the_event_loop():
    """Its longest step does not grow with their number."""
    store = MemoryStore()
    for number in range(2_000):
        await append_created(store, issue(f"caller{number}")[1])
    worker = Worker(store)
    with observed_loop() as work:
        await asyncio.create_task(worker.keys.refresh())

    assert len(worker.directory.callers()) == 2_000
    assert work.most_calls < 500
