"""Ownership of the objects in relayed answers.

What a request creates is bound to the caller's team, and so is what a server adds to an object of the team later: the
files of a finished batch, the files in a vector store. A list of an account has the objects of all teams: it is
answered without those of others.

Source: https://platform.openai.com/docs/api-reference/batch/object, /vector-stores-files/file-object
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote_plus

from proxy.context import Context
from proxy.state.owner import Owner
from proxy.state.ownership import Ownership
from proxy.state.references import Kind, Reference
from proxy.wire.errors import BackendError
from proxy.wire.relay import RelayRequest

JSON = dict[str, Any]
KINDS: Sequence[Kind] = ("object", "container", "response", "conversation", "item")
"""The kinds of ids that a relayed request may name. All that was created on relayed paths is an "object"."""
AT_ONCE = 16
"""How many objects of a list are compared or bound before others are served."""
MAX_ID_CHARS = 1_024
"""The longest id that is bound; a longer one could not be protected."""
NAMED_IN_CALLS: Mapping[str, Kind] = {
    "container": "container", "file": "file", "vector_store": "vector_store", "vector_store.file": "file",
    "container.file": "file", "skill": "skill",
}  # fmt: skip
"""The types of objects that calls name too: their ids are bound under this kind as well."""
TRANSIENT = frozenset({"chat.completion", "chat.completion.chunk", "text_completion"})
"""Objects that a backend keeps only if the request says `store`: their ids would displace those of kept objects."""
# Fields in which a server names files that it has made. No other inner field counts: a caller may have written it.
RESULTS: Mapping[str, Sequence[str]] = {
    "batch": ("output_file_id", "error_file_id"),
    "fine_tuning.job": ("result_files",),
}


class RelayedAnswers:
    """Binds the ids in relayed answers, and removes what other teams own from lists."""

    def __init__(self, ownership: Ownership, *, denies_unknown: bool = False) -> None:
        """`denies_unknown`: whether what has no known owner is left out of lists."""
        self._ownership = ownership
        self._denies_unknown = denies_unknown

    async def bind_created(self, answer: JSON, request: RelayRequest, target: str, context: Context) -> None:
        """Bind the id of what a request created. A fault of the store never fails the answer: it is logged.

        Raises BackendError for an id that is too long to be protected.
        """
        if answer.get("object") in TRANSIENT and not (request.call and request.call.body.get("store") is True):
            return
        # A completed upload contains its file.
        file = answer.get("file") if answer.get("object") == "upload" else None
        for created in (answer, file) if isinstance(file, dict) else (answer,):
            await self._bind_object(created, target, context)

    async def bind_inner(self, answer: JSON, target: str, context: Context) -> None:
        """Bind what is in an object of the team's own: the elements of its lists, and the files of its results."""
        await self._bind_results(answer, target, context)
        for position, listed in enumerate(_elements(answer)):
            await self._bind_object(listed, target, context)
            await self._bind_results(listed, target, context)
            if position % AT_ONCE == AT_ONCE - 1:  # a store in memory does not let others run
                await asyncio.sleep(0)

    async def keep_own(self, answer: JSON | list[Any], target: str, context: Context) -> bool:
        """Remove what the team may not see from the lists of an answer; return whether anything was removed.

        Results of the team's own objects are bound. Raises Unavailable.
        """
        elements = [element for element in _elements(answer) if isinstance(element.get("id"), str)]
        hidden: set[int] = set()
        for start in range(0, len(elements), AT_ONCE):
            hidden |= await self._hidden_of(elements[start : start + AT_ONCE], target, context)
        for holder in _lists(answer) if hidden else ():
            holder[:] = [element for element in holder if id(element) not in hidden]
        if hidden and isinstance(answer, dict):
            _correct_ends(answer)
        return bool(hidden)

    async def _hidden_of(self, elements: Sequence[JSON], target: str, context: Context) -> set[int]:
        """Return the `id()` of each of these objects that the team may not see."""
        wanted = [Reference(kind, element["id"], None) for element in elements for kind in KINDS]
        owners = await self._ownership.owners(wanted, context)
        hidden: set[int] = set()
        for position, element in enumerate(elements):
            known = [each for each in owners[position * len(KINDS) : (position + 1) * len(KINDS)] if each is not None]
            if self._is_hidden(known, context):
                hidden.add(id(element))
            elif known:
                await self._bind_results(element, target, context)
        return hidden

    async def forget(self, answer: JSON, request: RelayRequest, context: Context) -> None:
        """Forget the owner of an object that was deleted; one that was removed from another object still exists."""
        _, _, value = request.path.partition("/")
        if answer.get("deleted") is True and value and "/" not in value:
            for kind in ("object", *dict.fromkeys(NAMED_IN_CALLS.values())):
                await self._ownership.forget(kind, value, context)

    def _is_hidden(self, known: Sequence[Owner], context: Context) -> bool:
        return any(owner.team != context.caller.team for owner in known) or (self._denies_unknown and not known)

    async def _bind_object(self, created: JSON, target: str, context: Context) -> None:
        value = created.get("id")
        if not isinstance(value, str):
            return
        if len(value) > MAX_ID_CHARS:
            message = f"The upstream's answer has an id of {len(value)} characters; the limit is {MAX_ID_CHARS}."
            raise BackendError(message, code="upstream_invalid_response")
        await self._ownership.bind_id("object", value, target, context)
        if (kind := NAMED_IN_CALLS.get(str(created.get("object")))) is not None:
            await self._ownership.bind_id(kind, value, target, context)

    async def _bind_results(self, owned: JSON, target: str, context: Context) -> None:
        for name in RESULTS.get(str(owned.get("object")), ()):
            value = owned.get(name)
            for result in value if isinstance(value, list) else [value]:
                await self._bind_object({"id": result, "object": "file"}, target, context)


def count_listed(answer: JSON | list[Any]) -> int:
    """Return how many elements the lists of an answer have."""
    return sum(map(len, _lists(answer)))


def last_id(answer: JSON | list[Any]) -> str | None:
    """Return the id after which the next page of a list begins; None if there is none."""
    data = answer.get("data") if isinstance(answer, dict) and answer.get("has_more") is True else None
    last = data[-1].get("id") if isinstance(data, list) and data and isinstance(data[-1], dict) else None
    return last if isinstance(last, str) else None


def next_page(query: str, after: str) -> str:
    """Return the query of a list for the page that begins after an id."""
    kept = [
        pair for pair in query.split("&") if pair and unquote_plus(pair.partition("=")[0]) not in ("after", "before")
    ]
    return "&".join([*kept, f"after={quote(after, safe='')}"])


def _lists(answer: JSON | list[Any]) -> Iterator[list[Any]]:
    """Yield the lists of objects in an answer: itself, or those in its fields."""
    holders = [answer] if isinstance(answer, list) else [value for value in answer.values() if isinstance(value, list)]
    yield from (holder for holder in holders if any(isinstance(element, dict) for element in holder))


def _elements(answer: JSON | list[Any]) -> list[JSON]:
    return [element for holder in _lists(answer) for element in holder if isinstance(element, dict)]


def _correct_ends(answer: JSON) -> None:
    """Set the ids with which a client asks for the next page: no client may ask with one that is not its own."""
    data = answer.get("data")
    ids = [element.get("id") for element in data if isinstance(element, dict)] if isinstance(data, list) else []
    for name, value in (("first_id", ids[0] if ids else None), ("last_id", ids[-1] if ids else None)):
        if name in answer:
            answer[name] = value
