"""Counting the tool calls in a reply, as the events of different servers show them."""

import gc
import sys
from typing import Any

import pytest

from policies.support.tally import Tally
from policies.support.tools import kind_of_call
from proxy.wire.event import Event

SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "in_progress"}
RENAMED = SEARCH | {"id": "ws_9"}
SHELL: dict[str, Any] = {"type": "shell_call", "id": "sh_1", "environment": None}
LOCAL = SHELL | {"environment": {"type": "local"}}


def event(kind: str, index: Any, item: Any) -> Event:
    return Event(kind, data={"type": kind, "output_index": index, "item": item})


def added(index: Any, item: Any) -> Event:
    return event("response.output_item.added", index, item)


def done(index: Any, item: Any) -> Event:
    return event("response.output_item.done", index, item)


def both(index: Any, item: Any) -> list[Event]:
    return [added(index, item), done(index, item)]


def completed(output: Any) -> Event:
    return Event("response.completed", data={"type": "response.completed", "response": {"output": output}})


def is_counted(item: object) -> bool:
    return isinstance(item, dict) and kind_of_call(item) in ("server", "unknown")


@pytest.mark.parametrize(
    ("events", "counts"),
    [
        ([added(0, SEARCH), done(0, SEARCH), added(1, SEARCH), done(1, SEARCH)], [1, 1, 2, 2]),
        ([done(0, SEARCH), done(1, SEARCH), done(2, SEARCH)], [1, 2, 3]),
        ([added(0, {"type": "message"}), added(1, SEARCH)], [0, 1]),
        ([added(0, "odd"), added(0, None), completed("odd")], [0, 0, 0]),
        # Servers that give no output_index: the id identifies the item, and without ids each event does.
        ([*both(None, SEARCH), *both(None, SEARCH | {"id": "ws_2"})], [1, 1, 2, 2]),
        ([*both(None, {"type": "mcp_call"}), *both(None, {"type": "mcp_call"})], [1, 1, 2, 2]),
        # Servers that give every item the same output_index.
        ([*both(0, SEARCH), *both(0, SEARCH | {"id": "ws_2"})], [1, 1, 2, 2]),
        # An event that is repeated, and an item that has another id when it is done.
        ([added(0, SEARCH), added(0, SEARCH), done(0, RENAMED), added(1, RENAMED), done(1, SEARCH)], [1, 1, 1, 2, 2]),
        # Items that only the last event contains.
        ([added(0, SEARCH), completed([SEARCH, "odd", {"type": "message"}, SEARCH])], [1, 2]),
        ([added(0, SEARCH), added(1, SEARCH), completed([SEARCH])], [1, 2, 2]),
        ([added(0, SEARCH), completed(None)], [1, 1]),
        # A shell that does not say where it runs counts when it is done.
        ([added(0, SHELL), done(0, SHELL)], [0, 1]),
        ([added(0, SHELL), done(0, LOCAL)], [0, 0]),
        ([added(0, SHELL | {"environment": {"type": "container_auto"}})], [1]),
    ],
)
def test_each_call_counts_once(events: list[Event], counts: list[int]):
    """The event that adds an item and the one that finishes it are one call."""
    tally = Tally(is_counted)

    assert [tally.count(event) for event in events] == counts


def test_a_tally_without_calls_takes_little_memory():
    """Every stream has one until its end."""
    tally = Tally(is_counted)
    tally.count(added(0, {"type": "message", "id": "msg_1"}))
    kept = [each for each in gc.get_referents(tally) if not callable(each)]

    assert sum(map(sys.getsizeof, [tally, *kept])) < 250
