"""How many calls of tools a reply has made, as its events tell it, one by one.

Source: what servers were seen to send: items that share a place, ids that change between events, items that only the
last event holds.
"""

from collections.abc import Callable
from typing import Any

from proxy.wire.event import TERMINALS, Event

Place = tuple[str, int]


class Tally:
    """Counts the items of one reply that `counts` says yes to."""

    def __init__(self, counts: Callable[[object], bool]) -> None:
        self._counts = counts
        self._seen: set[Place] = set()
        self._ids: dict[tuple[str, str], list[Any]] = {}  # by type of event and place: the ids that were told

    def made(self, event: Event) -> int:
        """How many calls were made, as far as is told by this event and those before it."""
        if event.type.startswith("response.output_item."):
            item = event.data.get("item")
            if self._counts(item) and not (event.type == "response.output_item.added" and _is_unsettled(item)):
                self._seen.add(self._place(event))
        elif event.type in TERMINALS:
            output = event.response.get("output")  # it may hold what no event told of
            return max(len(self._seen), sum(map(self._counts, output)) if isinstance(output, list) else 0)
        return len(self._seen)

    def _place(self, event: Event) -> Place:
        """What tells one item of a response from another, in all events that speak of it.

        Items to which a server gives one and the same place, or none, are told apart by their ids among events of one
        type, as ids may change from one type to the next; without ids each event of a type is another item.
        """
        index, item_id = event.data.get("output_index"), event.data["item"].get("id")
        place = str(index if isinstance(index, int) else item_id)
        ids = self._ids.setdefault((event.type, place), [])
        if item_id is None or item_id not in ids:
            ids.append(item_id)
            return place, len(ids)
        return place, ids.index(item_id) + 1


def _is_unsettled(item: Any) -> bool:
    """Whether an item that only begins does not tell yet who runs it."""
    return item.get("type") == "shell_call" and not isinstance(item.get("environment"), dict)
