"""Pages of a list: `limit`, `order` and `after` of a query, and the list object that answers it.

Source: https://platform.openai.com/docs/api-reference/responses/input-items
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from proxy.state.items import StoredItem
from proxy.wire.errors import RequestError
from proxy.wire.items import JSON
from proxy.wire.query import query_pairs
from proxy.wire.refusals import invalid_type, invalid_value, out_of_range, shorten

DEFAULT_LIMIT, MAX_LIMIT = 20, 100
PAGE_PARAMETERS = frozenset({"limit", "order", "after"})
MAX_DIGITS = 9
LARGEST = 1_000_000_000
"""The value of any longer number: above every bound, and within the range of each store."""


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is requested."""

    limit: int = DEFAULT_LIMIT
    descending: bool = True
    after: str | None = None

    def of(self, items: Sequence[StoredItem]) -> JSON:
        """Return the page of items, which are given oldest first, as a list object. Raises RequestError."""
        ordered = [*reversed(items)] if self.descending else [*items]
        start = 0
        if self.after is not None:
            places = [place for place, item in enumerate(ordered, 1) if item.id == self.after]
            if not places:
                raise RequestError(f"Invalid 'after': no item with id '{shorten(self.after)}' found.", param="after")
            start = places[-1]
        return list_object(ordered[start : start + self.limit], has_more=len(ordered) > start + self.limit)


def list_object(items: Sequence[StoredItem], *, has_more: bool = False) -> JSON:
    """Return a list object with these items."""
    return {
        "object": "list",
        "data": [item.listed for item in items],
        "first_id": items[0].id if items else None,
        "last_id": items[-1].id if items else None,
        "has_more": has_more,
    }


def read_page(query: str) -> Page:
    """Return the page that a query requests. Raises RequestError."""
    given = {name: value for name, value in query_pairs(query) if value}
    order = given.get("order", "desc")
    if order not in ("asc", "desc"):
        raise invalid_value("order", order, "'asc' and 'desc'")
    limit = read_integer_parameter(given.get("limit"), "limit")
    limit = DEFAULT_LIMIT if limit is None else limit
    if limit < 1:
        raise out_of_range("limit", "integer_below_min_value", ">= 1", limit)
    if limit > MAX_LIMIT:
        raise out_of_range("limit", "integer_above_max_value", f"<= {MAX_LIMIT}", limit)
    return Page(limit, order == "desc", given.get("after"))


def read_integer_parameter(text: str | None, name: str) -> int | None:
    """Return an integer of a query, None if there is none. Raises RequestError."""
    if text is None:
        return None
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        raise invalid_type(name, "an integer", text)
    if len(digits.lstrip("0")) > MAX_DIGITS:
        return LARGEST if digits == text else -LARGEST
    return int(text)


def unknown_parameters(query: str, known: Collection[str]) -> list[str]:
    """Return the names in a query that have no effect, each once."""
    return list(dict.fromkeys(name for name, _ in query_pairs(query) if name and name not in known))
