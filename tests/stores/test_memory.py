"""The store in memory: all its contents are bounded."""

from typing import Any

import pytest

from proxy.config.build import ConfigError, build
from proxy.stores import StoreError
from proxy.stores._groups import SHARE, SPARE_KEYS, GroupedCache
from proxy.stores.memory import ENTRY_BYTES, MemoryStore
from tests.stores.conftest import SteppedClock


async def test_the_bytes_of_values_are_bounded():
    """The least recently used value is evicted first."""
    store = MemoryStore(store_max_bytes=100)
    await store.put("a", b"a" * 40, ttl_s=60)
    await store.put("b", b"b" * 40, ttl_s=60)
    await store.get("a")
    await store.put("c", b"c" * 40, ttl_s=60)

    assert [await store.get(key) for key in "abc"] == [b"a" * 40, None, b"c" * 40]


async def test_the_number_of_values_is_bounded():
    """The limit also applies to very small values."""
    store = MemoryStore(store_max_entries=3)
    for key in "abcde":
        await store.put(key, b"", ttl_s=60)

    assert [await store.get(key) is not None for key in "abcde"] == [False, False, True, True, True]


async def test_a_value_that_is_put_again_evicts_no_other():
    """A full store replaces the value in place."""
    store = MemoryStore(store_max_entries=2)
    for key in "abbb":
        await store.put(key, key.encode(), ttl_s=60)

    assert [await store.get(key) for key in "ab"] == [b"a", b"b"]


async def test_a_value_larger_than_the_store_is_not_kept():
    """It evicts no other value either."""
    store = MemoryStore(store_max_bytes=10)
    await store.put("a", b"a" * 10, ttl_s=60)

    assert await store.put("b", b"b" * 11, ttl_s=60) is False
    assert (await store.get("a"), await store.get("b")) == (b"a" * 10, None)


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({}, "abcde"),
        ({"store_max_entries": 4}, "bcde"),
        ({"store_max_entries": 2}, "de"),
        ({"store_max_bytes": 45}, "bcde"),
        ({"store_max_bytes": 25}, "de"),
    ],
)
async def test_values_that_are_put_together_are_within_the_limits(limits: dict[str, int], kept: str):
    """They evict what was there before, and each other if there are more of them than there is room for."""
    store = MemoryStore(**limits)
    await store.put("a", b"0123456789", ttl_s=60)

    assert await store.put_new([*"bcde"], b"9876543210", ttl_s=60) == [True] * 4
    assert [key for key in "abcde" if await store.get(key) is not None] == [*kept]
    assert store._values.most_size == 10 * len(kept)


async def test_a_key_that_is_named_twice_is_put_once():
    """The second time it is not free any more, whether or not there is room."""
    for limits in ({}, {"store_max_entries": 1}):
        store = MemoryStore(**limits)

        assert await store.put_new(["a", "a"], b"0123456789", ttl_s=60) == [True, False]
        assert (store._values.most_size, store._values.most_entries) == (10, 1)


async def test_a_value_that_grows_reuses_its_own_room():
    """The bytes of the old value count as free."""
    store = MemoryStore(store_max_bytes=100)
    await store.put("a", b"a" * 60, ttl_s=60)
    await store.put("a", b"b" * 90, ttl_s=60)

    assert await store.get("a") == b"b" * 90


async def test_values_never_evict_counters_or_leases():
    """A flood of values evicts only values."""
    store = MemoryStore(store_max_bytes=100, store_max_entries=3)
    await store.take("counter", 5, limit=10, window_s=60)
    await store.claim("lease", "a", lease_s=60)
    await store.append("journal", b"a", ttl_s=60)
    for number in range(100):
        await store.put(str(number), b"a" * 90, ttl_s=60)

    assert (await store.take("counter", 0, limit=10, window_s=60)).used == 5
    assert await store.claim("lease", "b", lease_s=60) is False
    assert await store.tail("journal") == [(1, b"a")]


async def test_a_counter_beyond_the_limit_is_an_error():
    """Existing counters keep working, and one that expires makes room."""
    store, clock = MemoryStore(store_max_counters=2), SteppedClock()
    vars(store)["_clock"] = clock
    await store.take("a", 1, limit=10, window_s=60)
    await store.claim("b", "owner", lease_s=90)
    for beyond in (
        store.take("c", 1, limit=10, window_s=60),
        store.claim("c", "owner", lease_s=60),
        store.append("c", b"", ttl_s=60),
    ):
        with pytest.raises(StoreError, match="store_max_counters is 2"):
            await beyond
    kept = (await store.take("a", 1, limit=10, window_s=60)).used, await store.claim("b", "owner", lease_s=90)
    clock.advance(61)

    assert kept == (2, True)
    assert (await store.take("c", 1, limit=10, window_s=60)).granted == 1
    assert await store.claim("b", "other", lease_s=60) is False


async def test_the_bytes_of_journals_are_bounded():
    """An entry beyond the limit is an error and leaves no gap; an expired journal makes room."""
    store, clock = MemoryStore(store_max_journal_bytes=3 * (10 + ENTRY_BYTES)), SteppedClock()
    vars(store)["_clock"] = clock
    await store.append("a", b"a" * 10, ttl_s=60)
    await store.append("b", b"b" * 10, ttl_s=90)
    await store.append("b", b"c" * 10, ttl_s=90)
    for key in "abc":
        with pytest.raises(StoreError, match="store_max_journal_bytes is 222"):
            await store.append(key, b"", ttl_s=60)
    kept = await store.tail("a")
    clock.advance(61)

    assert kept == [(1, b"a" * 10)]
    assert await store.append("b", b"d", ttl_s=60) == 3


async def test_a_group_leaves_room_for_the_journals_of_others():
    """One that has written half of what there is gets an error; the next group has half of the rest."""
    store = MemoryStore(store_max_journal_bytes=8 * (10 + ENTRY_BYTES))
    written = []
    for group in ("anna", "ben", "cleo"):
        for number in range(8):
            try:
                await store.append(f"{group}{number % 2}", b"a" * 10, ttl_s=60, group=group)
            except StoreError:
                written.append((group, number))
                break

    assert written == [("anna", 4), ("ben", 2), ("cleo", 1)]
    await store.delete("anna0")
    await store.delete("ben0")
    assert await store.append("anna1", b"a" * 10, ttl_s=60, group="anna") == 3


async def test_deleted_journals_make_room():
    """Their bytes are released, also if a value replaces the journal."""
    store = MemoryStore(store_max_journal_bytes=10 + ENTRY_BYTES)
    for _ in range(3):
        await store.append("a", b"a" * 10, ttl_s=60)
        await store.delete("a")
        await store.append("a", b"a" * 10, ttl_s=60)
        await store.put("a", b"", ttl_s=60)
        await store.delete("a")

    assert await store.append("b", b"b" * 10, ttl_s=60) == 1


@pytest.mark.parametrize(
    "key", ["store_max_bytes", "store_max_entries", "store_max_counters", "store_max_journal_bytes"]
)
def test_limits_are_positive(key: str):
    """A store of size zero is configured by omitting it."""
    route = [{"model": "*", "backend": "a"}]
    backend = [{"name": "a", "use": "replay", "path": "a.sse"}]
    with pytest.raises(ConfigError, match=rf"cache\.{key}"):
        build({"cache": {"use": "memory", key: 0}, "backend": backend, "route": route})


async def test_evicted_keys_are_removed_in_time():
    """The number of known keys never exceeds the maximum number of values."""
    store = MemoryStore(store_max_entries=4)
    for number in range(100):
        await store.put(str(number), b"1", ttl_s=60)

    assert [await store.get(str(number)) for number in range(96, 100)] == [b"1"] * 4
    assert await store.get("95") is None
    assert len(store._values.index) <= 4


async def test_a_group_that_fills_the_store_evicts_its_own_values():
    """One team that creates many entries does not make the gateway forget the owners of another team's."""
    store = MemoryStore(store_max_entries=10)
    for key in ("a1", "a2"):
        await store.put(key, b"a", ttl_s=60, group="anna")
    for number in range(1000):
        await store.put(f"b{number}", b"b", ttl_s=60, group="ben")
    await store.put("c1", b"c", ttl_s=60, group="cleo")
    kept = [key async for key in store.scan("b")]

    assert [await store.get(key) for key in ("a1", "a2", "c1")] == [b"a", b"a", b"c"]
    assert sorted(kept) == [f"b{number}" for number in range(993, 1000)]


async def test_a_group_with_large_values_evicts_its_own():
    """The same holds for bytes, whatever the number of values."""
    store = MemoryStore(store_max_bytes=100)
    for number in range(10):
        await store.put(f"a{number}", b"a", ttl_s=60, group="anna")
    for number in range(10):
        await store.put(f"b{number}", b"b" * 30, ttl_s=60, group="ben")

    assert [await store.get(f"a{number}") for number in range(10)] == [b"a"] * 10
    assert [key async for key in store.scan("b")] == ["b7", "b8", "b9"]


async def test_a_value_can_move_to_another_group():
    """It is under its key once."""
    store = MemoryStore(store_max_entries=2)
    await store.put("a", b"1", ttl_s=60, group="anna")
    await store.put("a", b"2", ttl_s=60, group="ben")

    assert await store.get("a") == b"2"
    assert [key async for key in store.scan("")] == ["a"]


async def test_a_group_leaves_room_for_the_counters_of_others():
    """No counter is dropped: a budget would begin anew. One more of the group is refused."""
    store = MemoryStore(store_max_counters=100)
    granted, refused = 0, 0
    for number in range(200):
        try:
            granted += (await store.take(f"a{number}", 1, limit=1, window_s=60, group="anna")).granted
        except StoreError:
            refused += 1
    others = [(await store.take(f"b{number}", 1, limit=1, window_s=60, group="ben")).granted for number in range(25)]

    assert (granted, refused, others) == (50, 150, [1] * 25)
    assert (await store.take("a0", 1, limit=2, window_s=60, group="anna")).used == 2


async def test_expired_entries_leave_their_room_to_all_groups():
    """Neither values nor counters count after their end."""
    store, clock = MemoryStore(store_max_entries=2, store_max_counters=2), SteppedClock()
    vars(store)["_clock"] = clock
    for key in ("a1", "a2"):
        await store.put(key, b"a", ttl_s=10, group="anna")
    await store.take("a3", 1, limit=1, window_s=10, group="anna")
    with pytest.raises(StoreError):
        await store.take("a4", 1, limit=1, window_s=10, group="anna")
    clock.now += 11

    assert await store.put("b1", b"b", ttl_s=10, group="ben")
    assert (await store.take("a4", 1, limit=1, window_s=10, group="anna")).granted == 1
    assert [key async for key in store.scan("")] == ["b1", "a4"]


async def test_entries_that_expire_one_after_the_other_leave_their_room():
    """Each time something has expired, and only what has."""
    store, clock = MemoryStore(store_max_entries=3), SteppedClock()
    vars(store)["_clock"] = clock
    await store.put("old", b"1", ttl_s=100, group="anna")
    for ttl_s in (20, 10):
        await store.put(f"ends after {ttl_s}", b"1", ttl_s=ttl_s, group="anna")
    kept = []
    for key in ("b1", "b2"):
        clock.now += 10
        await store.put(key, b"1", ttl_s=100, group="ben")
        kept.append([each async for each in store.scan("")])

    assert kept == [["old", "ends after 20", "b1"], ["old", "b1", "b2"]]


async def test_a_large_store_makes_room_for_several_entries_at_a_time():
    """Which group has most is looked for among all groups, which takes time by their number."""
    store = MemoryStore(store_max_entries=4 * SHARE)
    for number in range(4 * SHARE):
        await store.put(f"k{number}", b"1", ttl_s=60, group="anna" if number > 9 else "ben")
    await store.put("more", b"1", ttl_s=60, group="cleo")
    kept = {key async for key in store.scan("")}

    assert {f"k{number}" for number in range(4 * SHARE)} - kept == {f"k{number}" for number in range(10, 14)}
    assert "more" in kept


async def test_the_index_of_keys_is_bounded():
    """It forgets expired keys and empty groups."""
    store, clock = MemoryStore(), SteppedClock()
    vars(store)["_clock"] = clock
    for number in range(5000):
        await store.put(f"{number}", b"", ttl_s=1, group=f"team-{number % 100}")
        clock.now += 1

    assert len(store._values.index) <= 2 * SPARE_KEYS
    assert await store.get("4999") is None


@pytest.mark.parametrize("limits", [{"store_max_entries": 300}, {"store_max_bytes": 3000}])
async def test_a_full_store_counts_its_entries_in_a_share_of_the_puts(limits: dict[str, int]):
    """Counting takes time by the number of entries, so it is not done for each value that is dropped."""
    subject = MemoryStore(**limits)
    counted, count_again = [0], GroupedCache.count_again

    def count(cache: GroupedCache[Any]) -> None:
        counted[0] += 1
        count_again(cache)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GroupedCache, "count_again", count)
        for number in range(3000):
            await subject.put(f"k{number}", b"1234567890", ttl_s=60, group=f"team {number % 100}")

    assert await subject.get("k2999") == b"1234567890"
    assert 290 <= len([key async for key in subject.scan("k")]) <= 300
    assert counted[0] <= 3000 / 30
