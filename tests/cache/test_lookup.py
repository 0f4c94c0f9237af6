"""Where the entry of a call is, or why it is not looked up."""

from collections.abc import Awaitable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from proxy.cache import lookup as lookup_module
from proxy.cache.key import encode_call
from proxy.cache.lookup import Found, Lookups, partition_of
from proxy.cache.vault import EntryAddress, Vault
from proxy.cache.vault_keys import Partition
from proxy.context import Caller
from proxy.routing.routes import Route
from proxy.stores.memory import MemoryStore
from proxy.wire.call import Call
from proxy.workers import MANY_VALUES
from tests.examples import ANNA, make_call, make_context
from tests.pipelines import ScriptedBackend

ROUTE = Route("main", "*", ())
BEN = Caller("ben", team="search")


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The calls whose keys were made."""
    found: list[Call] = []

    make_keys = Lookups._keys_of

    def note(lookups: Lookups, call: Call, *args: Any) -> Sequence[str]:
        found.append(call)
        return make_keys(lookups, call, *args)

    monkeypatch.setattr(Lookups, "_keys_of", note)
    return found


def find(lookups: Lookups, call: Call, route: Route = ROUTE, caller: Any = ANNA) -> Found:
    found = lookups.find(call, route, make_context(caller))
    assert isinstance(found, EntryAddress | str)
    return found


def keys_of(lookups: Lookups, call: Call, route: Route = ROUTE, caller: Any = ANNA) -> Sequence[str]:
    found = find(lookups, call, route, caller)
    assert isinstance(found, EntryAddress)
    return found.keys


def test_the_key_of_a_call_that_is_received_again_is_made_once(keyed: list[Call]):
    """For the same caller on the same route."""
    lookups, call = Lookups(Vault(MemoryStore()), "always", "team"), make_call()
    call.remember()
    first = find(lookups, call)
    again = find(lookups, call)

    assert (again == first, again is first, len(keyed)) == (True, False, 1)
    for caller, route in ((BEN, ROUTE), (ANNA, replace(ROUTE))):
        find(lookups, call, route, caller)
    assert len(keyed) == 3


@pytest.mark.parametrize("secrets", [(), (b"one",), (b"new", b"old")], ids=["plain", "sealed", "rotated"])
def test_keys_that_begin_alike_are_those_of_the_vault(secrets: Sequence[bytes], monkeypatch: pytest.MonkeyPatch):
    """Whatever has been looked up before: by route, partition, parameters, headers and fields."""
    monkeypatch.setattr(lookup_module, "MAX_KEYS", 2)
    vault = Vault(MemoryStore(), secrets)
    lookups = Lookups(vault, "always", "team")
    route = replace(ROUTE, targets=(ScriptedBackend(),))
    found, expected = [], []
    for _ in range(2):
        for name, caller, query, sent, text in product(
            ("main", "second"),
            (ANNA, Caller("carol", team="other")),
            ("", "include=x"),
            ({}, {"openai-beta": "x"}),
            "ab",
        ):
            call = Call({"model": "m", "input": text}, sent, query)
            encoded = encode_call(call, name, sent)
            found.append(keys_of(lookups, call, replace(route, name=name), caller))
            expected.append(vault.keys_of(encoded, partition_of(call, caller, "team")))

    assert found == expected
    assert len({*found}) == len(found) // 2 == 32


def test_headers_count_by_who_may_see_them():
    """A route with fewer targets has the same name, and other keys."""
    vault = Vault(MemoryStore())
    lookups, call = Lookups(vault, "always", "team"), make_call(_headers={"openai-beta": "x"})
    seen = replace(ROUTE, targets=(ScriptedBackend(),))
    routes = [ROUTE, seen, ROUTE, seen]
    found = [keys_of(lookups, call, route) for route in routes]

    assert found == [
        vault.keys_of(encode_call(call, "main", route.headers(call)), Partition("team", "search")) for route in routes
    ]
    assert len({*found}) == 2


def test_a_call_that_is_received_once_is_looked_up_each_time(keyed: list[Call]):
    """Nothing is noted of it."""
    lookups, call = Lookups(Vault(MemoryStore()), "always", "team"), make_call()

    assert find(lookups, call) == find(lookups, call)
    assert len(keyed) == 2


def test_a_call_that_is_not_looked_up_has_no_key(keyed: list[Call]):
    """Also when it is received again. Another route may look it up."""
    lookups, call = Lookups(Vault(MemoryStore()), "never", "team"), make_call()
    call.remember()

    assert [find(lookups, call) for _ in range(2)] == ["route", "route"]
    assert keyed == []
    assert keys_of(lookups, call, route=replace(ROUTE, cache="always"))


@pytest.mark.parametrize(
    ("fields", "reason"), [({"tools": [{"type": "web_search"}]}, "tools"), ({"prompt": {"id": "pmpt_1"}}, "prompt")]
)
async def test_a_call_of_tools_that_the_server_runs_has_no_key(
    fields: dict[str, Any], reason: str, keyed: list[Call]
):  # fmt: skip
    """Unless the config allows it; a large one is looked through in a thread."""
    vault, call, context = Vault(MemoryStore()), make_call(**fields), make_context()
    small = find(Lookups(vault, "always", "team"), call)
    context.values = MANY_VALUES
    large = Lookups(vault, "always", "team").find(make_call(**fields), ROUTE, context)

    assert isinstance(large, Awaitable)
    assert (small, await large, keyed) == (reason, reason, [])
    assert keys_of(Lookups(vault, "always", "team", allows_tools=True), call)
    assert keyed == [call]


async def test_the_key_of_a_large_call_is_waited_for():
    """It is hashed in a thread, if there are any; one that is not looked up has none."""
    call, context = make_call(), make_context()
    context.values = MANY_VALUES
    vault = Vault(MemoryStore())
    waiting = Lookups(vault, "always", "team").find(call, ROUTE, context)

    assert isinstance(waiting, Awaitable)
    assert await waiting == find(Lookups(vault, "always", "team"), call)
    assert Lookups(vault, "never", "team").find(call, ROUTE, context) == "route"


def test_an_answer_that_continues_a_response_is_its_team_s_own():
    """The id of that response belongs to the team."""
    call = make_call(store=False, previous_response_id="resp_1")

    assert partition_of(call, ANNA, "all") == Partition("team", "search")
