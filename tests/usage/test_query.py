"""Reads rows of usage from a store."""

from datetime import UTC, datetime, timedelta

import pytest

from proxy.stores.memory import MemoryStore
from proxy.usage.book import HOUR_S, hour_name
from proxy.usage.columns import Labels
from proxy.usage.flush import hour_key
from proxy.usage.query import TooManyLines, read_usage

HOURS, MODELS = 24, 3
UNTIL = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
TIMES = (UNTIL - timedelta(hours=HOURS), UNTIL)


@pytest.fixture
async def store() -> MemoryStore:
    """A store with a row of each model in each hour."""
    rows = {Labels("search", "ada", "", f"m{number}", "fake").name(): (1,) for number in range(MODELS)}
    store, first = MemoryStore(), int(TIMES[0].timestamp() // HOUR_S)
    for number in range(HOURS):
        await store.add(hour_key(hour_name(first + number)), rows, ttl_s=600, source="test", number=number + 1)
    return store


async def test_a_report_has_no_more_lines_than_are_allowed(store: MemoryStore):
    """Rows of one line count once, however many hours they are of."""
    report = await read_usage(store, TIMES, ["model"], most_lines=MODELS)
    assert [line["calls"] for line in report.lines] == [HOURS] * MODELS

    with pytest.raises(TooManyLines, match="more than 3"):
        await read_usage(store, TIMES, ["model", "hour"], most_lines=MODELS)
