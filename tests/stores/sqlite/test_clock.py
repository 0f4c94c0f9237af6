"""Time in the SQLite store, while the machine's clock is set forward and back."""

import time
from pathlib import Path

import pytest

from proxy.stores.sqlite import database
from tests.stores.sqlite.conftest import open_store

HOUR_S = 3600.0


class MachineClock:
    """The time of day, which a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shift_s = 0.0
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.shift_s)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> MachineClock:
    return MachineClock(monkeypatch)


@pytest.mark.parametrize("shift_s", [HOUR_S, -HOUR_S, 400 * 24 * HOUR_S])
async def test_setting_the_clock_changes_nothing(path: Path, machine: MachineClock, shift_s: float):
    """For a process that runs, and for one that starts then: windows, leases, values and journals last as they would."""
    async with open_store(path) as store:
        taken = await store.take("counter", 1, limit=1, window_s=60)
        await store.claim("lease", "owner", lease_s=30)
        await store.put("value", b"a", ttl_s=60)
        await store.append("journal", b"b", ttl_s=60)
        machine.shift_s = shift_s
        async with open_store(path) as other:
            for each in (store, other):
                refused = await each.take("counter", 1, limit=1, window_s=60)

                assert (refused.granted, refused.window) == (0, taken.window)
                assert 0 < refused.resets_in_s <= taken.resets_in_s
                assert not await each.claim("lease", "another", lease_s=30)
                assert (await each.get("value"), await each.tail("journal")) == (b"a", [(1, b"b")])
            await other.put("later", b"c", ttl_s=60)

        assert await store.get("later") == b"c"


async def test_after_a_start_of_the_machine_its_clock_counts_again(
    path: Path, machine: MachineClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """What has expired while it was off is gone, and what has not is there."""
    async with open_store(path) as store:
        await store.put("short", b"a", ttl_s=60)
        await store.put("long", b"b", ttl_s=2 * HOUR_S)
    monkeypatch.setattr(database, "BOOT", tmp_path / "boot_id")
    database.BOOT.write_text("another start\n")
    machine.shift_s = HOUR_S
    async with open_store(path) as store:
        assert (await store.get("short"), await store.get("long")) == (None, b"b")


async def test_where_a_start_has_no_name_the_clock_is_that_of_the_machine(
    path: Path, machine: MachineClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """As on systems other than Linux."""
    monkeypatch.setattr(database, "BOOT", tmp_path / "none")
    async with open_store(path) as store:
        await store.put("key", b"a", ttl_s=60)
        machine.shift_s = 61.0

        assert await store.get("key") is None
