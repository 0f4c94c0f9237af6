"""Tests that run on every store. Counters, journals, leases and processes have their own files."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from proxy.stores import Holder, HoldRequest, Store, StoreError

HOLDER = Holder("h", 60)
BYTES = bytes(range(256)) + "\u00e9\u4e2d\U0001f600".encode()
# Each kind of data, and a function that stores it under a key.
FILL: dict[str, Callable[[Store, str], Awaitable[object]]] = {
    "value": lambda store, key: store.put(key, b"7", ttl_s=60),
    "counter": lambda store, key: store.take(key, 1, limit=5, window_s=60),
    "journal": lambda store, key: store.append(key, b"a", ttl_s=60),
    "tally": lambda store, key: store.add(key, {"a": [1]}, ttl_s=60, source="s", number=1),
    "lease": lambda store, key: store.claim(key, "a", lease_s=60),
}
# Each method that needs a kind of data, and that kind.
USE: dict[str, tuple[str, Callable[[Store, str], Awaitable[object]]]] = {
    "get": ("value", lambda store, key: store.get(key)),
    "get_many": ("value", lambda store, key: store.get_many([f"{key}x", key])),
    "take": ("counter", FILL["counter"]),
    "give": ("counter", lambda store, key: store.give(key, 1, window=1)),
    "hold": (
        "counter",
        lambda store, key: store.hold(key, HoldRequest(1, more=1), limit=5, window_s=60, holder=HOLDER),
    ),
    "append": ("journal", FILL["journal"]),
    "tail": ("journal", lambda store, key: store.tail(key)),
    "add": ("tally", FILL["tally"]),
    "rows": ("tally", lambda store, key: store.rows(key)),
    "claim": ("lease", FILL["lease"]),
    "release": ("lease", lambda store, key: store.release(key, "a")),
}


async def keys(store: Store, prefix: str) -> list[str]:
    return sorted([key async for key in store.scan(prefix)])


def test_a_store_that_lacks_a_method_cannot_be_created():
    """The error comes before the first call and names the missing methods."""

    class Half(Store):
        async def get(self, key: str) -> bytes | None:
            raise AssertionError(key)

    with pytest.raises(TypeError, match=r"abstract methods add, append, claim, delete, give, hold, put"):
        Half.model_validate({})


async def test_an_unknown_key_has_no_value(store: Store, key: str):
    """The result is None, not an error."""
    assert await store.get(key) is None


@pytest.mark.parametrize("value", [b"", b"a", BYTES, b"a" * 2_000_000], ids=["empty", "short", "every byte", "long"])
async def test_bytes_are_returned_as_they_were_put(store: Store, key: str, value: bytes):
    """They are not decoded on the way."""
    assert await store.put(key, value, ttl_s=60) is True
    assert await store.get(key) == value


async def test_a_later_value_replaces_an_earlier_one(store: Store, key: str, advance):
    """The later value has its own time to live."""
    await store.put(key, b"earlier", ttl_s=10)
    await store.put(key, b"later", ttl_s=60)
    advance(20)

    assert await store.get(key) == b"later"


async def test_a_value_expires(store: Store, key: str, advance):
    """Fractions of a second count."""
    await store.put(key, b"a", ttl_s=10.5)
    advance(10.2)
    before = await store.get(key)
    advance(0.4)

    assert (before, await store.get(key)) == (b"a", None)


@pytest.mark.parametrize("ttl_s", [1e9, 1e15, 1e308])
async def test_the_longest_times_are_accepted(store: Store, key: str, ttl_s: float):
    """They mean "for ever" and are limited to the longest time of the store."""
    assert await store.put(key, b"1", ttl_s=ttl_s) is True
    assert await store.get(key) == b"1"
    assert (await store.take(f"{key}c", 1, limit=1, window_s=ttl_s)).granted == 1
    assert await store.append(f"{key}j", b"a", ttl_s=ttl_s) == 1
    assert await store.claim(f"{key}l", "a", lease_s=ttl_s) is True


async def test_the_shortest_times_are_accepted(store: Store, key: str):
    """Redis counts in milliseconds; none of them is refused."""
    assert await store.put(key, b"a", ttl_s=0.0001) is True
    assert (await store.take(f"{key}c", 1, limit=1, window_s=0.0001)).granted == 1
    assert await store.append(f"{key}j", b"a", ttl_s=0.0001) == 1
    assert await store.claim(f"{key}l", "a", lease_s=0.0001) is True


async def test_if_absent_keeps_an_existing_value(store: Store, key: str):
    """The result is whether the new value was kept."""
    assert await store.put(key, b"first", ttl_s=60, if_absent=True) is True
    assert await store.put(key, b"second", ttl_s=60, if_absent=True) is False
    assert await store.get(key) == b"first"


async def test_if_absent_replaces_an_expired_value(store: Store, key: str, advance):
    """An expired value is absent."""
    await store.put(key, b"first", ttl_s=10)
    advance(11)

    assert await store.put(key, b"second", ttl_s=60, if_absent=True) is True
    assert await store.get(key) == b"second"


async def test_if_absent_keeps_exactly_one_of_many(store: Store, key: str):
    """The values are put at the same time."""
    kept = await asyncio.gather(*(store.put(key, b"%d" % i, ttl_s=60, if_absent=True) for i in range(20)))

    assert kept.count(True) == 1
    assert await store.get(key) == b"%d" % kept.index(True)


async def test_one_value_is_put_under_all_keys_that_are_free(store: Store, key: str):
    """Whatever kind of data the others hold, they keep it; no keys are no error."""
    names = [f"{key}{name}" for name in ("new", *FILL)]
    for name, fill in FILL.items():
        await fill(store, f"{key}{name}")
    kept = await store.put_new(names, b"owner", ttl_s=60)
    none = await store.put_new([], b"owner", ttl_s=60)

    assert ([*kept], [*none]) == ([True, *[False] * len(FILL)], [])
    assert [await store.get(f"{key}{name}") for name in ("new", "value")] == [b"owner", b"7"]
    assert await keys(store, key) == sorted(names)
    for name in FILL.keys() - {"value"}:
        with pytest.raises(StoreError):
            await store.get(f"{key}{name}")


async def test_what_is_put_under_several_keys_expires(store: Store, key: str, advance):
    await store.put_new([key, f"{key}2"], b"owner", ttl_s=10)
    advance(11)

    assert [await store.get(name) for name in (key, f"{key}2")] == [None, None]


async def test_many_values_are_got_together(store: Store, key: str, advance):
    """Each under its own key, in their order; none for keys that are free or expired."""
    for name, ttl_s in (("a", 60), ("b", 10), ("c", 60)):
        await store.put(f"{key}{name}", name.encode(), ttl_s=ttl_s)
    advance(11)

    assert list(await store.get_many([f"{key}{name}" for name in "cbxac"])) == [b"c", None, None, b"a", b"c"]
    assert list(await store.get_many([])) == []


async def test_many_values_are_put_together(store: Store, key: str, advance):
    """Each replaces what its key held, and they expire together."""
    await store.put(f"{key}a", b"before", ttl_s=60)
    await store.put_many([(f"{key}{name}", name.encode()) for name in "ab"], ttl_s=10)
    await store.put_many([], ttl_s=10)
    found = list(await store.get_many([f"{key}a", f"{key}b"]))
    advance(11)

    assert (found, list(await store.get_many([f"{key}a", f"{key}b"]))) == ([b"a", b"b"], [None, None])


async def test_keys_do_not_mix(store: Store, key: str):
    """Parallel commands each get their own value."""
    names = [f"{key}{i}" for i in range(100)]
    await asyncio.gather(*(store.put(name, name.encode(), ttl_s=60) for name in names))
    values = await asyncio.gather(*(store.get(name) for name in names))

    assert values == [name.encode() for name in names]


async def test_a_started_store_is_ready(store: Store):
    """/readyz uses this state."""
    assert await store.ready() is True


async def test_a_scan_finds_every_kind_of_data(store: Store, key: str, advance):
    """It returns each key once, without expired, deleted or released ones and without keys that only resemble the prefix."""
    for kind, fill in FILL.items():
        for number in range(3):
            await fill(store, f"{key}*{kind}{number}")
        await fill(store, f"{key}x{kind}")
    await store.put(f"{key}*short", b"a", ttl_s=10)
    await store.delete(f"{key}*journal0")
    await store.release(f"{key}*lease0", "a")
    advance(11)

    expected = {f"{key}*{kind}{number}" for kind in FILL for number in range(3)}
    assert await keys(store, f"{key}*") == sorted(expected - {f"{key}*journal0", f"{key}*lease0"})
    assert await keys(store, f"{key}*lease1") == [f"{key}*lease1"]
    assert await keys(store, f"{key}?") == []


@pytest.mark.parametrize("prefix", ["a*", "a?", "a[b]", "a\\", "a^", "a-", "a%", "a_", "a'", "\u00e9"])
async def test_a_prefix_is_plain_text(store: Store, key: str, prefix: str):
    """None of its characters is a pattern."""
    for name in (f"{prefix}b", "ab", "aab", "abb", "e"):
        await store.put(f"{key}{name}", b"1", ttl_s=60)

    assert await keys(store, f"{key}{prefix}") == [f"{key}{prefix}b"]


async def test_a_scan_of_many_keys_is_complete(store: Store, key: str):
    """It returns more keys than one step of a scan."""
    names = [f"{key}{number}" for number in range(1200)]
    for batch in (names[:600], names[600:]):
        await asyncio.gather(*(store.put(name, b"", ttl_s=60) for name in batch))

    assert await keys(store, key) == sorted(names)


@pytest.mark.parametrize("kind", FILL)
async def test_a_deleted_key_holds_nothing(store: Store, key: str, kind: str):
    """It may have held any kind of data. Deleting an unknown key is no error."""
    await FILL[kind](store, key)
    await store.delete(key)
    await store.delete(key)

    assert await keys(store, key) == []
    assert await store.get(key) is None
    assert await store.tail(key) == []


@pytest.mark.parametrize("kind", FILL)
async def test_a_value_replaces_whatever_a_key_holds(store: Store, key: str, kind: str):
    """With `if_absent` it does not."""
    await FILL[kind](store, key)

    assert await store.put(key, b"new", ttl_s=60, if_absent=True) is False
    assert await store.put(key, b"new", ttl_s=60) is True
    assert await store.get(key) == b"new"
    assert await keys(store, key) == [key]


@pytest.mark.parametrize(("verb", "kind"), [(verb, kind) for verb in USE for kind in FILL if USE[verb][0] != kind])
async def test_a_method_fails_on_another_kind_of_data(store: Store, key: str, verb: str, kind: str, advance):
    """It raises a StoreError and changes neither the data nor its time to live."""
    use = USE[verb][1]
    await FILL[kind](store, key)
    advance(40)
    with pytest.raises(StoreError):
        await use(store, key)
    held = await keys(store, key)
    advance(30)

    assert (held, await keys(store, key)) == ([key], [])


@pytest.mark.parametrize("kind", FILL)
async def test_expired_data_can_be_replaced_by_another_kind(store: Store, key: str, kind: str, advance):
    """A key with expired data is free."""
    for other, fill in FILL.items():
        await FILL[kind](store, f"{key}{other}")
        advance(61)

        await fill(store, f"{key}{other}")
    assert await keys(store, key) == [f"{key}{other}" for other in FILL if other == "lease"]
