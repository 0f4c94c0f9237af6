"""Counts the tool calls in a reply, event by event.

Source: what servers were seen to send: items with the same output_index, ids that change between events, items that
only the last event contains.
"""

from collections.abc import Callable
from typing import Any

from policies.support.tools import plain_type
from proxy.wire.event import TERMINALS, Event

ItemKey = tuple[str, int]
ITEM_TYPES = frozenset({"response.output_item.added", "response.output_item.done"})
COUNTED_TYPES = TERMINALS | ITEM_TYPES
"""The types of the events in which there may be items: others change no count."""


class Tally:
    """Counts the items of one reply for which `is_counted` is true."""

    __slots__ = ("_ids", "_is_counted", "_seen")

    def __init__(self, is_counted: Callable[[object], bool]) -> None:
        self._is_counted = is_counted
        self._seen: dict[ItemKey, None] = {}  # a set takes more memory as long as it is empty, as most are
        self._ids: dict[tuple[str, str], list[Any]] = {}  # the ids seen in events of one type, at one position

    def count(self, event: Event) -> int:
        """Return how many counted items there are in this event and those before it."""
        if event.type in ITEM_TYPES:
            item = event.data.get("item")
            if self._is_counted(item) and not (event.type == "response.output_item.added" and _is_undecided(item)):
                self._seen[self._key(event)] = None
        elif event.type in TERMINALS:
            output = event.response.get("output")  # it may contain items that had no event of their own
            return max(len(self._seen), sum(map(self._is_counted, output)) if isinstance(output, list) else 0)
        return len(self._seen)

    def _key(self, event: Event) -> ItemKey:
        """Return what identifies an item in all events about it: its position, and its number at that position.

        Items to which a server gives the same position, or none, are distinguished by their ids among events of one
        type, because an id may change from one type to the next; without ids each event of a type is another item.
        """
        index, item_id = event.data.get("output_index"), event.data["item"].get("id") or None
        position = str(index if isinstance(index, int) else item_id)
        ids = self._ids.setdefault((event.type, position), [])
        if item_id is None or item_id not in ids:
            ids.append(item_id)
            return position, len(ids)
        return position, ids.index(item_id) + 1


def _is_undecided(item: Any) -> bool:
    """Whether an item that begins does not say yet where it runs."""
    kind = item.get("type")
    return isinstance(kind, str) and plain_type(kind) == "shell_call" and not isinstance(item.get("environment"), dict)
