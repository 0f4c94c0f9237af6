"""Whose the objects are that a backend creates on relayed paths: files, vector stores, containers, batches ...

The `id` of a JSON answer to a POST is bound to the caller's team before the caller receives it. A later request that
names an id of another team, in its path, its query or its body, is refused in the words for an unknown one.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from policies.support.walk import plain_name
from proxy.context import Context
from proxy.state.ownership import Owner, Ownership
from proxy.state.references import Kind, Reference, is_id
from proxy.state.relayed_forms import FORM, boundary_of, split_form
from proxy.wire.errors import RequestError
from proxy.wire.fields import normalize
from proxy.wire.query import query_pairs
from proxy.wire.relay import RelayRequest

NAMED_IN_CALLS: Mapping[str, Kind] = {"container": "container", "file": "file", "vector_store": "vector_store"}
"""The types of objects that calls name too: their ids are bound under this kind as well."""
KINDS: Sequence[Kind] = ("object", "container", "response", "conversation", "item")
"""The kinds of ids that a relayed request may name. All that was created on relayed paths is an "object"."""
MAX_IDS = 2_000
"""How many ids one request may name; OpenAI adds at most so many files to a vector store at once."""
TRANSIENT = frozenset({"chat.completion", "text_completion"})
"""Objects that a backend keeps only if the request says `store`: their ids would displace those of kept objects."""
# Ends of the names of fields that hold ids, or arrays of ids: file_id, vector_store_ids, training_file, container ...
NAMES_OF_IDS = ("id", "ids", "file", "files", "container", "conversation")
FREE_FORM = frozenset({"metadata", "parameters", "schema", "arguments"})
# What an id looks like: a prefix, a separator, and a rest with a digit. No word of a path has that form.
_ID = re.compile(r"(?=.*[0-9])[A-Za-z][A-Za-z0-9]*[-_][A-Za-z0-9_-]{4,}")


class RelayedIds:
    """Binds ids of relayed answers, and checks those of relayed requests."""

    def __init__(self, ownership: Ownership, *, denies_unknown: bool = False) -> None:
        """`denies_unknown`: whether an id without an owner is refused too."""
        self._ownership = ownership
        self._denies_unknown = denies_unknown

    async def check(self, request: RelayRequest, context: Context) -> None:
        """Raises RequestError for an id of another team, and Unavailable while owners cannot be read."""
        size = len(request.body)
        named = await context.run(size, _named_ids, request)
        if len(named) > MAX_IDS:
            raise RequestError(f"The request names {len(named)} ids; the limit is {MAX_IDS}.", code="too_many_ids")
        await self._check_all(named, context)

    def check_form(self, request: RelayRequest, context: Context) -> RelayRequest:
        """Return the request with a form that is checked while it passes: its stream raises what `check` does.

        Raises RequestError for a form whose parts cannot be distinguished.
        """
        content_type = request.types.get("Content-Type", "")
        if request.stream is None or not content_type.lower().startswith(FORM):
            return request
        return replace(request, stream=self._checked(request.stream, boundary_of(content_type), context))

    async def _checked(self, chunks: AsyncIterator[bytes], boundary: bytes, context: Context) -> AsyncIterator[bytes]:
        async for data, field in split_form(chunks, boundary):
            if field is not None and field.holds_id(NAMES_OF_IDS) and is_id(field.text):
                await self._check_all([field.text], context)
            if data:
                yield data
            await asyncio.sleep(0)  # one chunk can have many parts

    async def _check_all(self, named: Sequence[str], context: Context) -> None:
        wanted = [Reference(kind, value, "id") for value in named for kind in KINDS]
        owners = await self._ownership.owners(wanted, context)
        for position, value in enumerate(named):
            self._check(value, owners[position * len(KINDS) : (position + 1) * len(KINDS)], context)

    async def bind(self, answer: Mapping[str, Any], request: RelayRequest, target: str, context: Context) -> None:
        """Bind the id of what a request created. A fault of the store never fails the answer: it is logged."""
        if answer.get("object") in TRANSIENT and not (request.call and request.call.body.get("store") is True):
            return
        # A completed upload contains its file. No other inner object counts: a caller may have written it.
        file = answer.get("file") if answer.get("object") == "upload" else None
        for created in (answer, file) if isinstance(file, dict) else (answer,):
            if is_id(value := created.get("id")):
                await self._ownership.bind_id("object", value, target, context)
                if (kind := NAMED_IN_CALLS.get(str(created.get("object")))) is not None:
                    await self._ownership.bind_id(kind, value, target, context)

    def _check(self, value: str, owners: Sequence[Owner | None], context: Context) -> None:
        known = [owner for owner in owners if owner is not None]
        is_denied = self._denies_unknown and not known and _ID.fullmatch(value) is not None
        if is_denied or any(owner.team != context.caller.team for owner in known):
            raise unknown_object(value)


def unknown_object(value: str) -> RequestError:
    """Return the refusal of an id that is unknown, or another team's: both have the same words."""
    return RequestError(f"No object with id '{value[:80]}' found.", status=404, param="id")


def _named_ids(request: RelayRequest) -> list[str]:
    """Return every text of a request that may be an id, each once."""
    names = [*request.path.split("/"), *(value for _, value in query_pairs(request.query) if request.query)]
    body = {} if request.call is None else request.call.body
    return list(dict.fromkeys(name for name in (*names, *_ids_in(body)) if name and _may_be_id(name)))


def _may_be_id(name: str) -> bool:
    """Whether a text can be an id, also if there is more than that around it which an upstream may overlook."""
    return is_id(name) or is_id(normalize(name))


def _ids_in(body: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts of a body that stand in fields for ids, at any depth but in free-form objects."""
    waiting: list[tuple[Any, bool]] = [(body, False)]  # a value, and whether its field holds ids
    while waiting:
        value, holds_ids = waiting.pop()
        if isinstance(value, str) and holds_ids:
            yield value
        elif isinstance(value, list):
            waiting += [(inner, holds_ids) for inner in value]
        elif isinstance(value, dict):
            for name, inner in value.items():
                if isinstance(inner, str | list | dict) and (plain := plain_name(name)) not in FREE_FORM:
                    waiting.append((inner, plain.endswith(NAMES_OF_IDS)))
