"""A store whose operations are measured does what the store in it does."""

import pytest

from proxy.stores import Holder, HoldRequest, StoreError
from proxy.stores._measured import MeasuredStore
from proxy.stores.memory import MemoryStore
from proxy.telemetry.instruments import Histogram
from proxy.telemetry.metrics import STORE_DURATION


def operations(store):
    """Return each operation, in an order in which each one finds something."""
    return {
        "put": store.put("a", b"1", ttl_s=60),
        "get": store.get("a"),
        "put_many": store.put_many([("b", b"2")], ttl_s=60),
        "put_new": store.put_new(["a", "c"], b"3", ttl_s=60),
        "get_many": store.get_many(["a", "b", "c"]),
        "delete": store.delete("c"),
        "take": store.take("d", 2, limit=5, window_s=60),
        "give": store.give("d", 1, window=1),
        "hold": store.hold("h", HoldRequest(1, more=2), limit=5, window_s=60, holder=Holder("me", 60)),
        "append": store.append("e", b"5", ttl_s=60),
        "tail": store.tail("e", after=0, limit=9),
        "add": store.add("g", {"row": [1]}, ttl_s=60, source="me", number=1),
        "rows": store.rows("g"),
        "claim": store.claim("f", "me", lease_s=60),
        "release": store.release("f", "me"),
    }


async def test_every_operation_is_passed_on_and_measured():
    """Its name and the system are the labels."""
    durations = Histogram(STORE_DURATION)
    plain, inner = MemoryStore(), MemoryStore()
    measured = MeasuredStore.of(inner, "memory", "state", durations)
    await measured.start()
    expected = {name: await work for name, work in operations(plain).items()}
    expected |= {name: expected[name].granted for name in ("take", "hold")}
    found = {name: await work for name, work in operations(measured).items()}
    found |= {name: found[name].granted for name in ("take", "hold")}

    assert found == expected
    assert list(durations.read()) == [("memory", name, "state", "") for name in expected]
    assert sorted([key async for key in measured.scan("")]) == sorted([key async for key in plain.scan("")])
    assert await measured.ready()
    await measured.check_durable()
    await measured.close()


async def test_a_fault_is_a_label():
    """It is raised as it is."""
    durations = Histogram(STORE_DURATION)
    measured = MeasuredStore.of(MemoryStore(), "memory", "cache", durations)
    await measured.append("a", b"1", ttl_s=60)

    with pytest.raises(StoreError):
        await measured.get("a")

    assert ("memory", "get", "cache", "store_failed") in durations.read()


def test_a_store_that_is_measured_has_to_be_waited_for():
    """Even if the one in it does not wait: each of its operations is measured."""
    store = MeasuredStore.of(MemoryStore(), "memory", "state", Histogram(STORE_DURATION))

    assert (store.peek, store.put_new_now) == (None, None)
    assert None not in (MemoryStore().peek, MemoryStore().put_new_now)
